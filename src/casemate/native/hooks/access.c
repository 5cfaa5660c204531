/* Accesses that leave the CPU: stores that their slot does not take, memory that nobody backs, ports. Whatever goes to Python lets it first have
   what is noted for it, so that it hears of everything in order. */
#include "cpu.h"

/* Python decides: 0 has the engine ignore the store, else the low half is the exception that undoes the instruction and the
   high half its error code. RIP is up to date. Python has returned when the exception is raised. */
EXPORT int hook_refused_store(void *uc, int type, u64 gpa, int size, u64 value, struct cpu *c) {
    (void)uc, (void)type;
    hand_over(c);
    c->store_gpa = gpa, c->store_size = size, c->store_value = value;
    u32 answer = c->on_store();
    if (answer) raise(c, answer & 0xffff, answer >> 16, 0);
    return 1;
}

/* Of a SEV-ES guest: a nested page fault, which the processor turns into #VC. */
EXPORT int hook_unmapped(void *uc, int type, u64 gpa, int size, u64 value, struct cpu *c) {
    (void)uc, (void)type, (void)gpa, (void)size, (void)value;
    raise(c, VECTOR_VC, EXIT_NPF, 0);
}

/* Memory that nobody backs; the user data is where its range begins. */

EXPORT u64 hook_mmio_read(void *uc, u64 offset, u32 size, u64 base) {
    struct cpu *c = find_cpu(AT(u64, uc, UC_CPU));
    return c->reads_table ? 0 : read_mmio(c, base + offset, size);
}

EXPORT void hook_mmio_write(void *uc, u64 offset, u32 size, u64 value, u64 base) {
    struct cpu *c = find_cpu(AT(u64, uc, UC_CPU));
    be_last_in_block(c, base + offset);
    write_mmio(c, base + offset, size, value);
}

/* An access of eight bytes is one, as KVM reports it. */
void h_memory_region_init_io(void *uc, void *region, void *operations, void *opaque, u64 size) {
    if (opaque) AT(u32, operations, REGION_MAX_ACCESS) = 8;
    e_memory_region_init_io(uc, region, operations, opaque, size);
}

/* IN and OUT, in place of the engine's helpers. */

#define MASK(bytes) (bytes == 4 ? ~0u : (1u << 8 * bytes) - 1)

static __attribute__((noreturn, noinline)) void undo_port(struct cpu *c, uintptr_t ra) {
    c->undo_port = 0;
    raise(c, UNDONE_PORT, 0, ra);
}

/* Whoever answers IN or OUT looks at registers: RIP and RFLAGS of the instruction, which the engine computes where it ends a block. */
EXPORT void hooks_find_place(struct cpu *c) {
    if (c->port_at) e_cpu_restore_state((void *)c->cpu, c->port_at, 0);
}

#define HELPER_IN(name, bytes) \
    u64 h_##name(void *env, u64 port, u64 unused) { \
        struct cpu *c = cpu_of_env(env); \
        if (c && c->flags & RAISES_VC) raise(c, VECTOR_VC, EXIT_IOIO, CALLER); \
        if (c) { \
            c->port_at = CALLER; \
            u64 value = read_port(c, port, bytes) & MASK(bytes); \
            c->port_at = 0; \
            if (c->undo_port) undo_port(c, CALLER); \
            return value; \
        } \
        TAIL e_##name(env, port, unused); \
    }
IN_HELPERS(HELPER_IN)

#define HELPER_OUT(name, bytes) \
    u64 h_##name(void *env, u64 port, u64 value) { \
        struct cpu *c = cpu_of_env(env); \
        if (c && c->flags & RAISES_VC) raise(c, VECTOR_VC, EXIT_IOIO, CALLER); \
        if (c) { \
            c->port_at = CALLER; \
            write_port(c, port, bytes, value & MASK(bytes)); \
            c->port_at = 0; \
            if (c->undo_port) undo_port(c, CALLER); \
            return 0; \
        } \
        TAIL e_##name(env, port, value); \
    }
OUT_HELPERS(HELPER_OUT)
