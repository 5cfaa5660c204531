/* Locked instructions of a guest whose memory other threads write to as well, as the devices of a monitor do. The engine makes
   them atomic, and barriers barriers, where it translates for CPUs that execute at once; it is told so. What it cannot make
   atomic then (across a boundary of the operand's size, and where no memory is) it wants executed while nobody else is: such
   an instruction is translated as for a guest that is alone. */
#include "cpu.h"

static int is_plain(struct cpu *c, u64 pc) {
    for (int i = 0; i < PLAIN; i++)
        if (c->plain[i] == pc) return 1;
    return 0;
}

/* An instruction at `pc` is about to be translated. */
void choose_atomics(struct cpu *c, u64 pc) {
    u32 *flags = &AT(u32, c->context, TCG_CFLAGS);
    if (c->shares_memory && !is_plain(c, pc)) *flags |= TCG_IS_PARALLEL;
    else *flags &= ~TCG_IS_PARALLEL;
}

void h_cpu_loop_exit_atomic(void *cpu, uintptr_t at) {
    struct cpu *c = find_cpu((u64)cpu);
    void *block = c ? e_tcg_tb_lookup(c->context, at) : 0;
    if (!block) {
        e_cpu_loop_exit_atomic(cpu, at);
        NEVER_RETURNS;
    }
    e_cpu_restore_state(cpu, at, 0);
    c->plain[c->plain_count++ % PLAIN] = AT(u64, c->env, ENV_RIP) + AT(u64, block, TB_CS_BASE);
    e_tb_phys_invalidate(c->context, block, -1);
    e_cpu_io_recompile(cpu, at);
    NEVER_RETURNS;
}
