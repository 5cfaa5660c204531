/* Where the next block is, for a jump whose target only the guest knows, and for one to another page.

   The engine keeps what it looked up, and forgets all of it with the TLB. Most of it is found again, at ten times the cost:
   the same code is at the same address after each change of the address space. Here a block that was known before is only
   compared: it is the same if it was not invalidated, and if its address is still, or again, that page's. */
#include "cpu.h"

enum { PAGE = 4096, NO_PAGE = -1 };
enum { CPL_USER = 3, EFLAGS_AC = 1 << 18, SUPERVISOR = 0, USER = 1, SUPERVISOR_NO_SMAP = 2 };

static struct known_block *place_of(struct cpu *c, u64 pc) { return &c->blocks->at[pc * 0x9e3779b97f4a7c15 >> 48 & (KNOWN_BLOCKS - 1)]; }
static u32 *page_stamp(struct cpu *c, u64 pc) { return &c->page_stamps[pc / PAGE % PAGE_STAMPS]; }

/* Another one whenever the TLB, what it has of that page, or a block was forgotten; never 0. */
static u32 stamp_of(struct cpu *c, u64 pc) {
    return (c->stamp + *page_stamp(c, pc) + AT(u32, c->context, TCG_INVALIDATED) + AT(u32, c->context, TCG_FLUSHED)) << 1 | 1;
}

void h_tb_flush_jmp_cache(void *cpu, u64 va) {
    struct cpu *c = find_cpu((u64)cpu);
    if (c) ++*page_stamp(c, va - PAGE), ++*page_stamp(c, va); /* a block may end on the page */
    e_tb_flush_jmp_cache(cpu, va);
}

/* Whose table of the TLB an access of the guest's goes through. */
int mode_of(void *env) {
    u32 hidden = AT(u32, env, ENV_HFLAGS);
    if ((hidden & HIDDEN_CPL) == CPL_USER) return USER;
    return hidden & HIDDEN_SMAP && !(AT(u32, env, ENV_EFLAGS) & EFLAGS_AC) ? SUPERVISOR : SUPERVISOR_NO_SMAP;
}

/* Which page of the guest's the code at `pc` is on, if the TLB knows that. */
static u64 page_of(struct cpu *c, u64 pc) {
    char *entry = fast_entry((void *)c->cpu, mode_of((void *)c->env), pc);
    return AT(u64, entry, ENTRY_CODE) == (pc & -(u64)PAGE) ? AT(u64, entry, ENTRY_PHYSICAL) : (u64)NO_PAGE;
}

static int is_still(struct cpu *c, struct known_block *k, u64 page) {
    if (!k->block || AT(u32, k->block, TB_CFLAGS) & TB_IS_INVALID || AT(u64, k->block, TB_SECOND_PAGE) != (u64)NO_PAGE) return 0;
    return page != (u64)NO_PAGE && page == page_of(c, k->pc);
}

static void forget_all(struct cpu *c) {
    for (int i = 0; i < KNOWN_BLOCKS; i++) c->blocks->at[i].block = 0, c->blocks->at[i].stamp = 0;
    c->flushed = AT(u32, c->context, TCG_FLUSHED);
}

/* The block that the engine found last for that address: helper_lookup_tb_ptr, its index. */
static void *engines_block(struct cpu *c, u64 pc) {
    u64 mixed = pc >> 6 ^ pc;
    return AT(void *, c->cpu, CPU_JUMP_CACHE + 8 * ((mixed >> 6 & 0xfc0) | (mixed & 0x3f)));
}

static __attribute__((noinline)) void *look_up(struct cpu *c, struct known_block *k, u64 pc, u32 flags) {
    u64 *page = &c->blocks->page[k - c->blocks->at];
    if (c->data_page) unmark_data(c);
    if (c->flushed != AT(u32, c->context, TCG_FLUSHED)) forget_all(c);
    if (k->pc == pc && k->flags == flags && is_still(c, k, *page)) {
        k->stamp = stamp_of(c, pc);
        return k->code;
    }
    void *code = e_helper_lookup_tb_ptr((void *)c->env), *block = engines_block(c, pc);
    if (block && AT(void *, block, TB_CODE) == code) {
        *page = page_of(c, pc);
        k->pc = pc, k->flags = flags, k->code = code, k->block = block, k->stamp = stamp_of(c, pc);
    }
    return code;
}

/* Called with the CPU (translate.c), not with its registers. */
void *h_helper_lookup_tb_ptr(void *cpu) {
    struct cpu *c = cpu;
    void *env = (void *)c->env;
    u64 pc = AT(u64, env, ENV_RIP);
    if (AT(u64, env, ENV_CS + SEGMENT_BASE)) return e_helper_lookup_tb_ptr(env);
    u32 flags = AT(u32, env, ENV_HFLAGS) | (AT(u32, env, ENV_EFLAGS) & EFLAGS_OF_BLOCK);
    struct known_block *k = place_of(c, pc);
    if (k->stamp == stamp_of(c, pc) && k->pc == pc && k->flags == flags) return k->code;
    return look_up(c, k, pc, flags);
}
