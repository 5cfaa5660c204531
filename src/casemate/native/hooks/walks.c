/* Page walks (AMD APM volume 2, 5.3; Intel SDM volume 3A, 4.5): what is read of the guest's page tables, and remembered of it.

   Firmware loads CR3 with the value that it has, and its handler of #VC does so for every access to a device. What is in the
   TLB then goes, as it must if the tables were changed. They seldom were: so all that was read of them since the TLB was
   empty is compared with what is there now, whoever may have written it, and if nothing differs the TLB stays, for it
   would be filled with the same again. */
#include "cpu.h"

enum { UNKNOWN = WALKED + 1 };

int h_x86_cpu_tlb_fill(void *cpu, u64 va, int size, int kind, int mmu, int probe, uintptr_t ra) {
    struct cpu *c = find_cpu((u64)cpu);
    if (!c) return e_x86_cpu_tlb_fill(cpu, va, size, kind, mmu, probe, ra);
    c->fill_kind = kind, c->fill_is_probe = probe; /* the function that enters the page is not told */
    c->table_bits = c->entry_bits = c->leaf = 0, c->is_walking = 1;
    c->level_count = 0;
    int is_entered = e_x86_cpu_tlb_fill(cpu, va, size, kind, mmu, probe, ra);
    c->is_walking = 0;
    return is_entered;
}

static struct walked *known(struct cpu *c, u64 *at) {
    u16 *place = &c->walked_places[(u64)at * 0x9e3779b97f4a7c15 >> 48 & (WALKED_PLACES - 1)];
    struct walked *w = &c->walked[*place]; /* an old number, or another's, is of an entry that is not meant */
    if (*place < c->walked_count && w->at == at) return w;
    *place = c->walked_count;
    return 0;
}

/* An entry of the TLB was made by the walk that goes on. What was read before and changed meanwhile stays in the list, too. */
void note_walk(struct cpu *c) {
    if (c->level_count > LEVELS) c->walked_count = UNKNOWN;
    for (u64 level = 0; level < c->level_count && c->walked_count != UNKNOWN; level++) {
        struct walked *read = &c->levels[level], *before = known(c, read->at);
        if (before && before->value == read->value) continue;
        if (c->walked_count == WALKED) c->walked_count = UNKNOWN;
        else c->walked[c->walked_count++] = *read;
    }
    c->level_count = 0;
}

int walks_are_as_before(struct cpu *c) {
    if (c->walked_count == UNKNOWN) return 0;
    for (u64 i = 0; i < c->walked_count; i++)
        if (*c->walked[i].at != c->walked[i].value) return 0;
    return 1;
}

/* Something else than the tables decides from now on what an entry allows, or memory is elsewhere. */
void forget_walks(struct cpu *c) { c->walked_count = UNKNOWN; }

/* Where the host has memory of the guest, or 0 if that is not in one piece. Python keeps the list, largest first. */
u8 *host_address(struct cpu *c, u64 gpa, u64 size) {
    for (u64 i = 0; i < c->ram_count; i++) {
        struct ram *ram = &c->ram[i];
        if (gpa - ram->start < ram->size && ram->size - (gpa - ram->start) >= size) return ram->host + (gpa - ram->start);
    }
    return 0;
}

/* Page walks: the engine would look through its memory map for each level, and takes bits from 40 on to be reserved. Those
   that the processor has are kept from it, and are in the addresses that it gets from an entry. */

static u64 as_private(struct cpu *c, u64 gpa) { return c->rights ? gpa | 1ull << C_BIT : gpa; }

u32 h_x86_ldl_phys(void *cpu, u64 gpa) {
    struct cpu *c = find_cpu((u64)cpu);
    if (c) {
        c->level_count = LEVELS + 1; /* only tables of 64-bit entries are remembered */
        gpa = as_private(c, gpa);
        u8 *host = host_address(c, gpa, 4);
        if (host) return c->leaf = *(u32 *)host;
        c->reads_table = 1;
    }
    u32 value = e_x86_ldl_phys(cpu, gpa);
    if (c) c->reads_table = 0, c->leaf = value;
    return value;
}

static void note_level(struct cpu *c, u64 *host, u64 entry) {
    if (!host || c->level_count >= LEVELS) c->level_count = LEVELS + 1;
    else c->levels[c->level_count++] = (struct walked){host, entry};
}

u64 h_x86_ldq_phys(void *cpu, u64 gpa) {
    struct cpu *c = find_cpu((u64)cpu);
    if (!c) return e_x86_ldq_phys(cpu, gpa);
    if (c->is_walking) gpa |= c->table_bits = c->entry_bits;
    gpa = as_private(c, gpa);
    u8 *host = host_address(c, gpa, 8);
    c->reads_table = !host;
    u64 entry = host ? *(u64 *)host : e_x86_ldq_phys(cpu, gpa);
    c->reads_table = 0;
    if (!c->is_walking) return entry;
    note_level(c, (u64 *)host, entry);
    c->entry_bits = entry & c->wide_bits, c->leaf = entry;
    return entry & ~c->wide_bits;
}

/* The walk itself says that a page was accessed or written to. */
static void note_update(struct cpu *c, u64 *host) {
    if (!host || c->level_count > LEVELS) return; /* a walk that is not remembered */
    struct walked *before = c->walked_count == UNKNOWN ? 0 : known(c, host);
    for (u64 level = 0; level < c->level_count; level++) {
        struct walked *read = &c->levels[level];
        if (read->at != host) continue;
        if (before && before->value == read->value) before->value = *host;
        read->value = *host;
    }
}

void h_x86_stl_phys_notdirty(void *cpu, u64 gpa, u32 value) {
    struct cpu *c = find_cpu((u64)cpu);
    if (!c) {
        e_x86_stl_phys_notdirty(cpu, gpa, value);
        return;
    }
    if (c->is_walking) gpa |= c->table_bits;
    gpa = as_private(c, gpa);
    e_x86_stl_phys_notdirty(cpu, gpa, value);
    if (c->is_walking) note_update(c, (u64 *)host_address(c, gpa, 8));
}
