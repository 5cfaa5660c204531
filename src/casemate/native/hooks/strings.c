/* REP MOVS and REP STOS of 32-bit and 64-bit code, a page at a time (Intel SDM volume 2, REP; AMD APM volume 3, 1.2.6).

   The engine goes through a block for each element. Before it does, the host's own instruction does as many as are on pages
   that the TLB would let it touch without a look: plain memory, no code, nothing that is watched. What is left, and all that
   can fault, is the engine's. So the guest stands at each fault where it should. */
#include "cpu.h"

enum { PAGE = 4096, STOS = 0xaa, IS_MOVS = 16, IS_32 = 32, TF = 1 << 8 };

static int shows(char *entry, u64 va, int access) { return AT(u64, entry, access) == (va & -(u64)PAGE); }

/* Where the host has the page of a linear address, which the TLB lets the guest reach by a load or a store; 0 if it does not.
   Source and destination may want the same place in it. */
static char *reached(struct cpu *c, int mode, u64 va, int access) {
    char *entry = fast_entry((void *)c->cpu, mode, va);
    for (int number = 0; !shows(entry, va, access); number++) {
        if (number == VICTIMS) return 0;
        entry = victim_entry((void *)c->cpu, mode, number);
    }
    return (char *)(va + AT(u64, entry, ENTRY_ADDEND));
}

#define HOST(instruction) __asm__ volatile("rep " instruction : "+D"(to), "+S"(from), "+c"(count) : "a"(value) : "memory")

/* As the guest's own would, where source and destination overlap, too. */
static void move(char *to, char *from, u64 count, u32 size) {
    u64 value = 0;
    if (size == 1) HOST("movsb");
    else if (size == 4) HOST("movsl");
    else HOST("movsq");
}

static void fill(char *to, u64 value, u64 count, u32 size) {
    char *from = 0;
    if (size == 1) HOST("stosb");
    else if (size == 4) HOST("stosl");
    else HOST("stosq");
}

static u64 at_most(u64 count, u64 va, u32 size) {
    u64 on_page = (PAGE - (va & (PAGE - 1))) / size;
    return count < on_page ? count : on_page;
}

static u64 linear(void *env, u32 what, u64 address, int segment) {
    return what & IS_32 ? (u32)(address + AT(u64, env, segment + SEGMENT_BASE)) : address;
}

static void advance(u64 *address, u32 what, u64 by) { *address = what & IS_32 ? (u32)(*address + by) : *address + by; }

/* Translated code calls it before each element. */
static void repeat(struct cpu *c, u32 what) {
    void *env = (void *)c->env;
    u64 *counter = &AT(u64, env, ENV_RCX), *to = &AT(u64, env, ENV_RDI), *from = &AT(u64, env, ENV_RSI);
    u64 left = what & IS_32 ? (u32)*counter : *counter;
    u32 size = what & (IS_MOVS - 1);
    if (left < 2 || AT(i32, env, ENV_DF) < 0 || c->watch_count) return;
    int mode = mode_of(env);
    u64 at = linear(env, what, *to, ENV_ES), count = at_most(left, at, size);
    char *target = reached(c, mode, at, ENTRY_WRITE);
    if (!target) return;
    if (what & IS_MOVS) {
        at = linear(env, what, *from, ENV_DS);
        char *source = reached(c, mode, at, ENTRY_READ);
        if (!source) return;
        count = at_most(count, at, size);
        move(target, source, count, size);
        advance(from, what, count * size);
    } else {
        fill(target, AT(u64, env, ENV_RAX), count, size);
    }
    advance(to, what, count * size);
    *counter = left - count;
}

/* The opcode of an instruction is being translated: if it is one of these, call `repeat` first. Single steps are of elements. */
void translate_repetition(struct cpu *c, u64 at, u32 window) {
    u32 byte = window & 0xff, prefix = window >> 8 & 0xff, length = at - AT(u64, c->block, BLOCK_PC_NEXT) + 1;
    u32 flags = AT(u32, AT(char *, c->block, 0), TB_FLAGS);
    int has_rex = flags & HIDDEN_CS64 && length == 3 && (prefix & 0xf0) == 0x40 && (window >> 16 & 0xff) == 0xf3;
    if (!(flags & (HIDDEN_CS64 | HIDDEN_CS32)) || flags & (TF | RF) || !(has_rex || (length == 2 && prefix == 0xf3))) return;
    u32 size = !(byte & 1) ? 1 : has_rex && prefix & 8 ? 8 : 4;
    call_with_cpu(c, (void *)repeat, size | (byte < STOS ? IS_MOVS : 0) | (flags & HIDDEN_CS64 ? 0 : IS_32));
}
