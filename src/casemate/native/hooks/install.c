/* Puts the hooks in place.

   The engine calls its own exported functions through its procedure linkage table, whose slots are plain writable data:
   where a slot holds the address of a function of the engine's, the address of ours is written. No code is changed, none
   is made, and no memory changes its protection. */
#include "cpu.h"
#include "elf64.h"

#define DEFINE(name, result, arguments) result(*e_##name) arguments;
CALLED(DEFINE)
REPLACED(DEFINE)
IN_CLASS(DEFINE)
HELPERS(DEFINE)
#define DEFINE_HELPER(name, code) u64 (*e_##name)(void *, u64, u64);
VC_HELPERS(DEFINE_HELPER)
IN_HELPERS(DEFINE_HELPER)
OUT_HELPERS(DEFINE_HELPER)
void (*e_siglongjmp)(void *, int);
void (*e_abort)(void);
void (*e_exit)(int);

static const u8 known_build[] = {0x44, 0x28, 0x5d, 0x3e, 0x80, 0x52, 0x71, 0x22, 0xe9, 0xe3,
                                 0x61, 0x92, 0x81, 0x89, 0x38, 0x59, 0x06, 0xec, 0x81, 0x3e};

/* ours is 0 for functions that are called and stay in their place. */
struct hook { const char *name, *suffix; void *ours; void **theirs; };
#define CALL(name, ...) {#name, "_x86_64", 0, (void **)&e_##name},
#define REPLACE(name, ...) {#name, "_x86_64", (void *)h_##name, (void **)&e_##name},
static const struct hook hooks[] = {
    CALLED(CALL) HELPERS(CALL) VC_HELPERS(CALL) IN_HELPERS(CALL) OUT_HELPERS(CALL) IN_CLASS(CALL) REPLACED(REPLACE)
    {"siglongjmp", "", (void *)h_siglongjmp, (void **)&e_siglongjmp},
    {"abort", "", (void *)hooks_abort, (void **)&e_abort},
    {"exit", "", (void *)h_exit, (void **)&e_exit},
};
enum { HOOKS = sizeof hooks / sizeof *hooks };

static struct cpu *cells[CELLS];

struct cpu *find_cpu(u64 cpu) {
    struct cpu *c = cells[cpu >> 6 & (CELLS - 1)];
    while (c && c->cpu != cpu) c = c->next;
    return c;
}

/* Nonzero if the CPU's class is as expected; then it is hooked. */
EXPORT int hooks_attach(struct cpu *c) {
    void *class = AT(void *, c->cpu, CPU_CLASS);
    u64 *in_use = &AT(u64, class, CLASS_TLB_FILL), *of_cpu = &AT(u64, class, CLASS_TLB_FILL_OF_CPU);
    u64 *take = &AT(u64, class, CLASS_EXEC_INTERRUPT);
    if (*of_cpu != (u64)e_x86_cpu_tlb_fill || *take != (u64)e_x86_cpu_exec_interrupt) return 0;
    *take = (u64)h_x86_cpu_exec_interrupt;
    c->context = AT(void *, AT(void *, c->cpu, CPU_UC), UC_TCG);
    *of_cpu = (u64)h_x86_cpu_tlb_fill;
    if (*in_use == (u64)e_x86_cpu_tlb_fill) *in_use = *of_cpu;
    struct cpu **cell = &cells[c->cpu >> 6 & (CELLS - 1)];
    c->next = *cell;
    __atomic_store_n(cell, c, __ATOMIC_RELEASE); /* other threads look their CPUs up meanwhile */
    return 1;
}

EXPORT void hooks_detach(struct cpu *c) {
    struct cpu **at = &cells[c->cpu >> 6 & (CELLS - 1)];
    while (*at && *at != c) at = &(*at)->next;
    if (*at) *at = c->next;
}

EXPORT u64 hooks_cpu_size(void) { return sizeof(struct cpu); }
EXPORT u64 hooks_group_size(void) { return sizeof(struct group); }
EXPORT u64 hooks_msrs_size(void) { return sizeof(struct msrs); }
EXPORT const char *hooks_sources(void) { return SOURCES; }

static int is_named(const char *name, const struct hook *hook) {
    const char *expected = hook->name;
    while (*expected && *name == *expected) name++, expected++;
    if (*expected) return 0;
    expected = hook->suffix;
    while (*expected && *name == *expected) name++, expected++;
    return !*expected && !*name;
}

/* One call site calls a function directly and through a hook; both must see the same return address. */
static uintptr_t seen;

static u64 look_at_caller(void *env, u64 a, u64 b) {
    seen = CALLER + (env && a + b == ~0ull);
    return 0;
}

#define TAIL_CALL(name, ...) {(void *)h_##name, (void **)&e_##name},
static const struct { void *ours; void **theirs; } tail_calls[] = {
    TAIL_CALL(helper_rdmsr) TAIL_CALL(helper_wrmsr) TAIL_CALL(helper_cpuid) TAIL_CALL(helper_set_dr)
    TAIL_CALL(helper_get_dr) TAIL_CALL(helper_read_crN) TAIL_CALL(helper_write_crN) TAIL_CALL(helper_cr4_testbit)
    VC_HELPERS(TAIL_CALL) IN_HELPERS(TAIL_CALL) OUT_HELPERS(TAIL_CALL)
};

static int jumps_to_originals(void) {
    static u8 no_cpu[CPU_ENV];
    for (u64 i = 0; i < sizeof tail_calls / sizeof *tail_calls; i++) {
        uintptr_t from[2];
        void *original = *tail_calls[i].theirs;
        *tail_calls[i].theirs = (void *)look_at_caller;
        for (volatile int direct = 0; direct < 2; direct++) {
            u64 (*volatile function)(void *, u64, u64) =
                direct ? look_at_caller : (u64(*)(void *, u64, u64))tail_calls[i].ours;
            function(no_cpu, 0, 0);
            from[direct] = seen;
        }
        *tail_calls[i].theirs = original;
        if (from[0] != from[1]) return 0;
    }
    return 1;
}

static int is_known_build(char *base, const struct elf_segment *segment) {
    const struct elf_note *note = (void *)(base + segment->address);
    if (note->type != NOTE_BUILD_ID || note->size != sizeof known_build) return 0;
    for (u64 at = 0; at < sizeof known_build; at++)
        if (note->bytes[at] != known_build[at]) return 0;
    return 1;
}

struct tables {
    const struct elf_symbol *symbols;
    const char *names;
    const struct elf_hash *hash;
    const struct elf_relocation *slots;
    u64 slots_size;
};

/* glibc adds the base to these addresses, musl does not. */
static void *located(char *base, u64 value) { return value < (u64)base ? base + value : (char *)value; }

static int find_tables(char *base, const struct elf_dynamic *dynamic, struct tables *t) {
    for (; dynamic && dynamic->tag; dynamic++) {
        switch (dynamic->tag) {
        case DYNAMIC_SYMTAB: t->symbols = located(base, dynamic->value); break;
        case DYNAMIC_STRTAB: t->names = located(base, dynamic->value); break;
        case DYNAMIC_GNU_HASH: t->hash = located(base, dynamic->value); break;
        case DYNAMIC_JMPREL: t->slots = located(base, dynamic->value); break;
        case DYNAMIC_PLTRELSZ: t->slots_size = dynamic->value; break;
        }
    }
    return t->symbols && t->names && t->hash && t->slots;
}

static u32 hash_of(u32 hash, const char *name) {
    while (*name) hash = hash * 33 + (u8)*name++;
    return hash;
}

/* The number of a hook's symbol, 0 if there is none. Those of libc are not in the hash table but before it. */
static u32 find_symbol(const struct tables *t, const struct hook *hook) {
    u32 first = t->hash->first_symbol, hash = hash_of(hash_of(ELF_HASH_SEED, hook->name), hook->suffix);
    const u32 *buckets = (const u32 *)&t->hash->filter[t->hash->filter_words], *chain = buckets + t->hash->bucket_count;
    u32 at = buckets[hash % t->hash->bucket_count];
    for (int is_last = !at; !is_last; at++) {
        is_last = chain[at - first] & 1;
        if ((chain[at - first] | 1) == (hash | 1) && is_named(t->names + t->symbols[at].name, hook)) return at;
    }
    for (at = 1; at < first; at++)
        if (is_named(t->names + t->symbols[at].name, hook)) return at;
    return 0;
}

/* Returns 0, or the name of the hook that has no place. */
static const char *find_places(char *base, const struct tables *t, void **places[HOOKS]) {
    u32 symbols[HOOKS];
    for (int h = 0; h < HOOKS; h++)
        if (!(symbols[h] = find_symbol(t, &hooks[h]))) return hooks[h].name;
    const struct elf_relocation *r = t->slots, *end = (void *)((char *)r + t->slots_size);
    for (; r < end; r++)
        for (int h = 0; h < HOOKS; h++)
            if (hooks[h].ours && symbols[h] == r->symbol) places[h] = (void **)(base + r->offset);
    for (int h = 0; h < HOOKS; h++) {
        u64 value = t->symbols[symbols[h]].value;
        if (hooks[h].ours && !places[h]) return hooks[h].name;
        *hooks[h].theirs = value ? base + value : *places[h]; /* of libc's: ctypes binds at once */
    }
    return 0;
}

/* Returns 0, or why nothing was done. base is where the engine was loaded. Call it once, and before the engine runs. */
EXPORT const char *hooks_install(char *base) {
    const struct elf_header *file = (void *)base;
    const struct elf_segment *segment = (void *)(base + file->segments_at);
    const struct elf_dynamic *dynamic = 0;
    struct tables t = {0};
    int is_known = 0;
    for (int i = 0; i < file->segment_count; i++, segment++) {
        if (segment->type == SEGMENT_DYNAMIC) dynamic = (void *)(base + segment->address);
        if (segment->type == SEGMENT_NOTE) is_known |= is_known_build(base, segment);
    }
    if (!is_known) return "the engine is not the known build of Unicorn 2.1.4";
    if (!jumps_to_originals()) return "the hooks were compiled without tail calls";
    if (!find_tables(base, dynamic, &t)) return "the engine's dynamic section is incomplete";
    void **places[HOOKS] = {0};
    const char *missing = find_places(base, &t, places);
    for (int h = 0; h < HOOKS && !missing; h++)
        if (hooks[h].ours) *places[h] = hooks[h].ours;
    return missing;
}
