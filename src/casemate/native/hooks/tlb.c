/* The engine's TLB: which stores are slow, and what an SNP guest may reach (docs/decisions/0002-engine-hooks.md).

   The engine must see a store to memory that it translated code from; it does so by making stores slow. Here a page is
   entered without the right to execute until something is fetched from it, so that its stores are fast. */
#include "cpu.h"

enum { FETCH = 2, EXECUTABLE = 4, PAGE = 4096, LARGE = 1 << 21 };
enum { CR4_PGE = 1 << 7, PTE_GLOBAL = 1 << 8, ENTRY_IS_GLOBAL = 1 };
#define CR0_PG (1u << 31)

static u8 *code_mark(struct cpu *c, u64 pa) { return &c->code_pages[pa >> 12 & (PAGES - 1)]; }

/* AMD APM volume 2, 15.36.7 and 15.34.5. Code, page tables and everything before long mode are private whatever the
   guest's page tables say: they get the C-bit. */
static u64 check_rights(struct cpu *c, u64 pa) {
    if (c->fill_kind == FETCH || !(AT(u32, c->env, ENV_HFLAGS) & HIDDEN_LMA)) pa |= 1ull << C_BIT;
    int is_private = pa >> C_BIT & 1;
    u64 page = (pa & ~(1ull << C_BIT)) >> 12; /* beyond the table there is no memory, but devices are */
    u8 refused = page < PAGES ? c->rights[page] & (is_private ? REFUSE_PRIVATE : REFUSE_SHARED) : 0;
    if (!refused || c->fill_is_probe) return pa;
    c->refused_gpa = pa & ~(1ull << C_BIT);
    raise(c, is_private ? VECTOR_VC : SHARED_ACCESS, EXIT_NOT_VALIDATED, AT(uintptr_t, c->cpu, CPU_RETURN_ADDRESS));
}

char *fast_entry(void *cpu, int mode, u64 va) {
    return AT(char *, cpu, FAST_TLB(mode) + 8) + (va >> 12 << 6 & AT(u64, cpu, FAST_TLB(mode)));
}

char *victim_entry(void *cpu, int mode, int number) {
    return (char *)cpu + VICTIM_TLB(mode) + number * ENTRY_BYTES;
}

/* A load of CR3 leaves entries of global pages in place (Intel SDM volume 3A, 4.10.4.1; AMD APM volume 2, 5.5.1). The engine
   removes all, and Linux patches its code in an address space of its own, twenty thousand times a boot. The entries that
   are not global are noted when they are made. */

static void note_entry(struct cpu *c, u64 va, int mode) {
    int is_global = c->leaf & PTE_GLOBAL && AT(u64, c->env, ENV_CR4) & CR4_PGE;
    AT(u64, fast_entry((void *)c->cpu, mode, va), ENTRY_SPARE) = is_global ? ENTRY_IS_GLOBAL : 0;
    if (is_global || c->local_count > LOCALS) return;
    if (c->local_count < LOCALS) c->locals[c->local_count] = (va & -(u64)PAGE) | mode;
    c->local_count++;
}

static int is_empty(char *entry) {
    return (AT(u64, entry, ENTRY_READ) & AT(u64, entry, ENTRY_WRITE) & AT(u64, entry, ENTRY_CODE)) == ~0ull;
}

static int is_of(char *entry, u64 page) {
    enum { FLAGS = PAGE / 2 - 1 }; /* without the one that says that an entry is no longer valid, as the engine compares */
    for (int at = ENTRY_READ; at <= ENTRY_CODE; at += 8)
        if ((AT(u64, entry, at) & ~(u64)FLAGS) == page) return 1;
    return 0;
}

static void empty(char *entry) {
    for (int at = 0; at < ENTRY_BYTES; at += 8) AT(u64, entry, at) = ~0ull;
}

static void remove_locals(struct cpu *c) {
    void *cpu = (void *)c->cpu;
    for (u64 i = 0; i < c->local_count; i++) {
        int mode = c->locals[i] & (PAGE - 1);
        char *entry = fast_entry(cpu, mode, c->locals[i]);
        if (!is_of(entry, c->locals[i] & -(u64)PAGE) || AT(u64, entry, ENTRY_SPARE) == ENTRY_IS_GLOBAL) continue;
        empty(entry);
        AT(u64, cpu, USED_ENTRIES(mode))--;
    }
    for (int mode = 0; mode < MODES; mode++)
        for (int number = 0; number < VICTIMS; number++) {
            char *entry = victim_entry(cpu, mode, number);
            if (!is_empty(entry) && AT(u64, entry, ENTRY_SPARE) != ENTRY_IS_GLOBAL) empty(entry);
        }
    c->local_count = c->walked_count = 0;
    c->stamp++;
    for (int at = 0; at < JUMP_CACHE_BYTES; at += 8) AT(u64, cpu, CPU_JUMP_CACHE + at) = 0;
}

void h_cpu_x86_update_cr3(void *env, u64 value) {
    struct cpu *c = cpu_of_env(env);
    int is_ours = c && is_executing(c) && AT(u64, env, ENV_CR0) & CR0_PG;
    if (is_ours && value == AT(u64, env, ENV_CR3) && walks_are_as_before(c)) return;
    if (is_ours && c->local_count <= LOCALS && AT(u64, env, ENV_CR4) & CR4_PGE) {
        AT(u64, env, ENV_CR3) = value;
        remove_locals(c);
    } else {
        e_cpu_x86_update_cr3(env, value);
    }
}

/* Of a large page the engine enters the part that is touched, and notes one range for all large pages there are, which is soon
   half of the address space: INVLPG of any page there empties the TLB. Here it is noted for each region of 2 MiB whether
   it may have such entries. */

static u64 *region_of(struct cpu *c, u64 va, u64 *bit) {
    u64 number = va / LARGE % LARGE_REGIONS;
    *bit = 1ull << number % 64;
    return &c->large[number / 64];
}

static void note_large(struct cpu *c, u64 va) {
    u64 bit, *word = region_of(c, va, &bit);
    *word |= bit;
    c->has_large = 1;
}

void h_tlb_flush_by_mmuidx(void *cpu, u16 modes) {
    struct cpu *c = find_cpu((u64)cpu);
    if (c) {
        c->stamp++;
        if (modes == (1 << MODES) - 1) {
            c->local_count = c->walked_count = 0;
            for (int i = 0; c->has_large && i < LARGE_REGIONS / 64; i++) c->large[i] = 0;
            c->has_large = 0;
        }
    }
    e_tlb_flush_by_mmuidx(cpu, modes);
}

void h_tlb_flush_page_by_mmuidx(void *cpu, u64 va, u16 modes) {
    struct cpu *c = find_cpu((u64)cpu);
    u64 bit;
    if (c && c->is_unmapping) return;
    if (c && *region_of(c, va, &bit) & bit) e_tlb_flush(cpu);
    else e_tlb_flush_page_by_mmuidx(cpu, va, modes);
}

/* Change the protection of memory, or take it away, by one of the engine's functions. It looks pages up by their physical addresses
   as if they were virtual ones: what that leaves behind is put right. And it forgets each page, and all of the TLB after that. */
EXPORT int hooks_change_memory(struct cpu *c, int (*change)(void *, u64, u64, u32), u64 gpa, u64 size, u32 access, u32 unmaps) {
    u64 cr2 = AT(u64, c->env, ENV_CR2);
    c->is_unmapping = unmaps;
    int error = change(AT(void *, c->cpu, CPU_UC), gpa, size, access);
    c->is_unmapping = 0;
    AT(u64, c->env, ENV_CR2) = cr2;
    AT(i32, c->cpu, CPU_EXCEPTION_INDEX) = AT(i32, c->env, ENV_OLD_EXCEPTION) = -1;
    return error;
}

/* The engine makes the first store through an entry slow, to see whether there is code on the page. It is known that there is
   none, and that none will come without an entry being made for it. */
static void make_fast(char *entry) {
    if ((AT(u64, entry, ENTRY_WRITE) & (PAGE - 1)) == WRITE_IS_SLOW) AT(u64, entry, ENTRY_WRITE) &= ~(u64)WRITE_IS_SLOW;
}

void h_tlb_set_page_with_attrs(void *cpu, u64 va, u64 pa, u32 attrs, int prot, int mmu, u64 size) {
    struct cpu *c = find_cpu((u64)cpu);
    int is_marked = 0;
    if (c) {
        if (c->is_walking) pa |= c->entry_bits;
        if (c->rights) pa = check_rights(c, pa);
        u8 *mark = code_mark(c, pa);
        if (!*mark) {
            if (c->fill_kind == FETCH) {
                *mark = 1;
                c->fetched++;
                if (c->group) c->group->fetched++, c->fetched_known++;
                e_tlb_flush(cpu); /* no entry made before may let a store go unseen */
            } else {
                prot &= ~EXECUTABLE;
            }
        }
        is_marked = *mark;
    }
    if (c && size == LARGE) note_large(c, va), size = PAGE;
    e_tlb_set_page_with_attrs(cpu, va, pa, attrs, prot, mmu, size);
    if (!c) return;
    note_entry(c, va, mmu);
    note_walk(c);
    if (!is_marked) make_fast(fast_entry(cpu, mmu, va));
}

static int is_code(struct cpu *c, char *entry, u64 va) {
    return (AT(u64, entry, ENTRY_WRITE) & -(u64)PAGE) == (va & -(u64)PAGE) && *code_mark(c, AT(u64, entry, ENTRY_PHYSICAL));
}

/* Several CPUs over the same memory take turns. Each has translations and a TLB of its own, and the mark of a page says whether
   any of them fetched from it. So before its turn a CPU forgets what others wrote over meanwhile, and, if a page was fetched
   from for the first time, its TLB, which may let stores to that page go unseen. */

/* `start` is in the engine's own numbers, which others have others for: they are told the host's address. */
static void note_write(struct cpu *c, u64 start) {
    u64 page = start & -(u64)PAGE, *noted = &c->pages_noted[page / PAGE % PAGES_NOTED];
    struct group *g = c->group;
    if (!g || *noted == page) return;
    *noted = page;
    if (c->written_known == g->written) c->written_known++; /* its own translations are dropped already */
    g->pages[g->written++ % NOTED] = (u64)e_qemu_map_ram_ptr(AT(void *, c->cpu, CPU_UC), 0, page);
}

/* A page that is stored to again and again after code was fetched from it holds data now, as firmware's memory does that was
   loaded over: its stores are to be fast again. If it holds both, it is asked for half as often each time. */
static void count_store(struct cpu *c, u64 start) {
    struct stored *s = &c->stored[start / PAGE % STORED];
    if (s->page != start / PAGE) *s = (struct stored){start / PAGE, 0, DATA_AFTER};
    if (++s->stores < s->limit) return;
    s->stores = 0;
    if (s->limit < 1u << 30) s->limit *= 2;
    c->data_page = (start & -(u64)PAGE) | IS_SET;
    c->stamp++; /* the next lookup of a block is a safe place */
}

/* The engine calls it for each slow store. */
void h_tb_invalidate_phys_page_fast(void *uc, void *pages, u64 start, int length, uintptr_t ra) {
    struct cpu *c = find_cpu(AT(u64, uc, UC_CPU));
    if (c) {
        note_write(c, start);
        count_store(c, start);
        if (c->before_store) c->before_store((u64)e_qemu_map_ram_ptr(uc, 0, start & -(u64)PAGE));
    }
    e_tb_invalidate_phys_page_fast(uc, pages, start, length, ra);
}

static void forget_page(struct cpu *c, u64 host) {
    void *uc = AT(void *, c->cpu, CPU_UC);
    u64 start = e_qemu_ram_addr_from_host(uc, (void *)host);
    if (start != ~0ull) e_tb_invalidate_phys_range(uc, start, start + PAGE);
}

/* The number of the mark of a page by the host's address, which the guest must have once; or PAGES. */
static u64 number_of(struct cpu *c, u8 *host) {
    u64 number = PAGES, places = 0;
    for (u64 i = 0; i < c->ram_count; i++) {
        u64 offset = host - c->ram[i].host;
        if (offset < c->ram[i].size) number = (c->ram[i].start + offset) >> 12 & (PAGES - 1), places++;
    }
    return places == 1 && c->ram_count < RAMS && c->ram[0].size <= (u64)PAGES * PAGE ? number : PAGES;
}

/* Between two blocks: nothing stays that was translated from there, be it encrypted or shared, and nothing in a TLB that lets it
   be executed. */
void unmark_data(struct cpu *c) {
    void *uc = AT(void *, c->cpu, CPU_UC);
    u64 number = number_of(c, e_qemu_map_ram_ptr(uc, 0, c->data_page & -(u64)PAGE));
    c->data_page = 0;
    if (number == PAGES || !c->code_pages[number]) return;
    c->code_pages[number] = 0;
    for (u64 i = 0; i < c->ram_count; i++) {
        struct ram *r = &c->ram[i];
        u64 offset = ((number - (r->start >> 12)) & (PAGES - 1)) * PAGE;
        if (offset >= r->size) continue;
        u64 start = e_qemu_ram_addr_from_host(uc, r->host + offset);
        if (start == ~0ull) continue;
        note_write(c, start);
        e_tb_invalidate_phys_range(uc, start, start + PAGE);
    }
    if (c->group) c->group->fetched++, c->fetched_known++;
    e_tlb_flush((void *)c->cpu);
}

static void forget_old_entries(struct cpu *c) {
    for (int i = 0; i < PAGES_NOTED; i++) c->pages_noted[i] = ~0ull;
    if (c->fetched_known != c->group->fetched) e_tlb_flush((void *)c->cpu), c->fetched_known = c->group->fetched;
}

void begin_turn(struct cpu *c) {
    struct group *g = c->group;
    if (!g) return;
    forget_old_entries(c);
    if (g->written - c->written_known > NOTED) e_tb_flush((void *)c->cpu), c->written_known = g->written;
    while (c->written_known != g->written) forget_page(c, g->pages[c->written_known++ % NOTED]);
}

/* Others had their turns while an access of this one waited for its answer (casemate kvm): it goes on to the end of its block
   only, if they wrote over code. */
void go_on(struct cpu *c) {
    if (!c->group) return;
    forget_old_entries(c);
    if (c->written_known != c->group->written) stop_engine(c);
}

/* After a slow store through an entry without the right to execute the engine makes it fast. If code was fetched from
   the page by another address, what is translated from there later would go stale: the entry stays slow. */
void h_tlb_set_dirty(void *cpu, u64 va) {
    struct cpu *c = find_cpu((u64)cpu);
    for (int mode = 0; c && mode < MODES; mode++) {
        if (is_code(c, fast_entry(cpu, mode, va), va)) return;
        for (int number = 0; number < VICTIMS; number++)
            if (is_code(c, victim_entry(cpu, mode, number), va)) return;
    }
    e_tlb_set_dirty(cpu, va);
}

static void make_slow(char *entry, u64 start, u64 length) {
    u64 *write = &AT(u64, entry, ENTRY_WRITE);
    if (!(*write & WRITE_IS_SPECIAL) && (*write & -(u64)PAGE) - start < length) *write |= WRITE_IS_SLOW;
}

/* Asked for each new translation. The engine's own looks at every entry of its TLB, though a page has one place in it. */
void h_tlb_reset_dirty_by_vaddr(void *cpu, u64 start, u64 length) {
    if (!find_cpu((u64)cpu) || length > 8 * PAGE) {
        e_tlb_reset_dirty_by_vaddr(cpu, start, length);
        return;
    }
    for (int mode = 0; mode < MODES; mode++) {
        for (u64 page = start & -(u64)PAGE; page < start + length; page += PAGE)
            make_slow(fast_entry(cpu, mode, page), start, length);
        for (int number = 0; number < VICTIMS; number++) make_slow(victim_entry(cpu, mode, number), start, length);
    }
}
