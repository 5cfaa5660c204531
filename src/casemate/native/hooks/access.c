/* Accesses that leave the CPU: stores that their slot does not take, memory that nobody backs, ports.

   Each is registered with the engine as a hook whose user data is the CPU. Whatever goes to Python lets it first have
   what is noted for it, so that it hears of everything in order. */
#include "cpu.h"

/* Python decides: 0 has the engine ignore the store, else it is the exception that undoes the instruction. RIP is up to
   date. Python has returned when the exception is raised. */
EXPORT int hook_refused_store(void *uc, int type, u64 gpa, int size, u64 value, struct cpu *c) {
    (void)uc, (void)type;
    hand_over(c);
    c->store_gpa = gpa, c->store_size = size, c->store_value = value;
    u32 vector = c->on_store();
    if (vector) raise(c, vector, 0, 0);
    return 1;
}

/* Of a SEV-ES guest: a nested page fault, which the processor turns into #VC. */
EXPORT int hook_unmapped(void *uc, int type, u64 gpa, int size, u64 value, struct cpu *c) {
    (void)uc, (void)type, (void)gpa, (void)size, (void)value;
    raise(c, VECTOR_VC, EXIT_NPF, 0);
}

EXPORT u64 hook_mmio_read(void *uc, u64 offset, u32 size, u64 base) {
    struct cpu *c = find_cpu(AT(u64, uc, UC_CPU));
    u64 value;
    if (flash_read(c, base + offset, size, &value)) return value;
    hand_over(c);
    return c->read_mmio(uc, offset, size, base);
}

EXPORT void hook_mmio_write(void *uc, u64 offset, u32 size, u64 value, u64 base) {
    struct cpu *c = find_cpu(AT(u64, uc, UC_CPU));
    if (flash_write(c, base + offset, size, value)) return;
    hand_over(c);
    c->write_mmio(uc, offset, size, value, base);
}

EXPORT u32 hook_in(void *uc, u32 port, int size, struct cpu *c) {
    hand_over(c);
    return c->read_port(uc, port, size, c);
}

EXPORT void hook_out(void *uc, u32 port, int size, u32 value, struct cpu *c) {
    hand_over(c);
    c->write_port(uc, port, size, value, c);
}
