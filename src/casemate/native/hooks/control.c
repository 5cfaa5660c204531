/* Control registers, segment bases and stacks where the engine does less than the manual says (Intel SDM volume 2, MOV to
   control registers, WRFSBASE, IRET, SMSW; AMD APM volume 2, 3.1). */
#include "cpu.h"

enum { CR0_PE = 1 << 0, CR0_NW = 1 << 29, CR0_CD = 1 << 30, CR4_PAE = 1 << 5, CR4_UMIP = 1 << 11, CR4_LA57 = 1 << 12 };
enum { CR4_FSGSBASE = 1 << 16, EFER_LME = 1 << 8 };
#define CR0_PG (1u << 31)

static int is_refused_cr0(void *env, u64 value) {
    u64 before = AT(u64, env, ENV_CR0);
    if (value >> 32 || (value & CR0_PG && !(value & CR0_PE)) || (value & CR0_NW && !(value & CR0_CD))) return 1;
    if (before & CR0_PG) return !(value & CR0_PG) && AT(u32, env, ENV_HFLAGS) & HIDDEN_CS64;
    return value & CR0_PG && AT(u64, env, ENV_EFER) & EFER_LME && !(AT(u64, env, ENV_CR4) & CR4_PAE);
}

static int is_refused_cr4(struct cpu *c, void *env, u64 value) {
    u64 changed = AT(u64, env, ENV_CR4) ^ value;
    if (value & c->cr4_reserved) return 1;
    return AT(u32, env, ENV_HFLAGS) & HIDDEN_LMA && changed & (CR4_PAE | CR4_LA57);
}

void h_helper_write_crN(void *env, int number, u64 value) {
    struct cpu *c = cpu_of_env(env);
    int is_refused = 0;
    if (c && number == 8 && c->lapic && !(value & ~0xfull)) {
        write_task_priority(c, value);
        return;
    }
    if (c && number == 8) is_refused = !!(value & ~0xfull);
    if (c && number == 0) is_refused = is_refused_cr0(env, value);
    if (c && number == 3) is_refused = AT(u32, env, ENV_HFLAGS) & HIDDEN_LMA && value & c->address_reserved;
    if (c && number == 4) is_refused = is_refused_cr4(c, env, value);
    if (is_refused) raise(c, VECTOR_GP, 0, CALLER);
    if (c && number == 4 && (AT(u64, env, ENV_CR4) ^ value) & CR4_UMIP) {
        /* Blocks are translated for one setting of it (translate.c). This one is gone with the others. */
        e_cpu_restore_state((void *)c->cpu, CALLER, 1);
        e_tb_flush((void *)c->cpu);
    }
    TAIL e_helper_write_crN(env, number, value);
}

/* The helper that is called for RDFSBASE and its like alone, to test CR4.FSGSBASE. What it is told besides is of the
   instruction's last bytes: REX or REPZ, 0F, AE and the operand. */
enum { WRITES = 1 << 17, OPERAND = 15 };

u32 with_operand(u32 bit, u32 window) {
    u32 rex = window >> 24, operand = window & 0xff, is_wide = (rex & 0xf8) == 0x48;
    return is_wide && operand & 0x10 ? bit | WRITES | (operand & 7) | (rex & 1) << 3 : bit;
}

void h_helper_cr4_testbit(void *env, u32 bit) {
    struct cpu *c = cpu_of_env(env);
    u64 *registers = &AT(u64, env, ENV_RAX);
    if (c && AT(u64, env, ENV_CR4) & CR4_FSGSBASE && bit & WRITES && !is_canonical(env, registers[bit & OPERAND]))
        raise(c, VECTOR_GP, 0, CALLER);
    TAIL e_helper_cr4_testbit(env, CR4_FSGSBASE);
}

/* In real mode the engine takes 16 bits of the stack pointer, and the processor 32 where the stack segment was made so in
   protected mode. For the moment the segment begins near the pointer, and the pointer is in the middle of 16 bits. */
enum { MIDDLE = 0x8000 };

void move_stack(struct cpu *c) {
    u32 hidden = AT(u32, c->env, ENV_HFLAGS);
    if (hidden & HIDDEN_PE || !(hidden & HIDDEN_SS32)) return;
    c->stack_base = AT(u64, c->env, ENV_SS + SEGMENT_BASE), c->stack_pointer = AT(u32, c->env, ENV_RSP);
    AT(u64, c->env, ENV_SS + SEGMENT_BASE) = c->stack_base + c->stack_pointer - MIDDLE;
    AT(u64, c->env, ENV_RSP) = MIDDLE;
    c->stack_moved = 1;
}

/* Back where it was, and as much further as the engine went. */
void restore_stack(struct cpu *c) {
    if (!c->stack_moved) return;
    AT(u64, c->env, ENV_RSP) = (u32)(c->stack_pointer + AT(u64, c->env, ENV_RSP) - MIDDLE);
    AT(u64, c->env, ENV_SS + SEGMENT_BASE) = c->stack_base;
    c->stack_moved = 0;
}

void h_helper_iret_real(void *env, int shift) {
    struct cpu *c = cpu_of_env(env);
    if (c) {
        e_cpu_restore_state((void *)c->cpu, CALLER, 1); /* the engine does not find its place from here */
        move_stack(c);
    }
    e_helper_iret_real(env, shift);
    if (c) restore_stack(c);
}

/* How far INT and INTO reach, for a fault in their delivery, which is theirs. */

void h_helper_raise_interrupt(void *env, int vector, int length) {
    struct cpu *c = cpu_of_env(env);
    if (c) c->int_length = length;
    TAIL e_helper_raise_interrupt(env, vector, length);
}

void h_helper_into(void *env, int length) {
    struct cpu *c = cpu_of_env(env);
    if (c) c->int_length = length;
    TAIL e_helper_into(env, length);
}

/* Who spins may wait for a CPU that waits for its turn, or for a timer; where there is no other CPU, for time to pass. The thread that
   looks after the timers may not run for long on a busy host, and kernels that count ticks against the time-stamp counter would
   take them for broken: so a look is due here, too. */
enum { SPIN = 16, LOOKS_APART = 1 << 22 };

static int is_time_to_look(struct cpu *c) {
    u64 now = __builtin_ia32_rdtsc();
    if (!c->group && c->on_spin && !(++c->pauses % SPIN) && c->on_spin()) return 1;
    if (now - c->looked < LOOKS_APART) return 0;
    c->looked = now;
    return 1;
}

/* Who has been spinning for a millisecond or more, as firmware does that counts down, need not burn the host's processor: it sleeps
   for a moment at each PAUSE. Who looks at a device in between does not, or its many short waits would become long. */
enum { CLOSE = 1 << 18, LONG = 1 << 22, MOMENT = 50000 };

static void rest(struct cpu *c) {
    u64 now = __builtin_ia32_rdtsc();
    if (now - c->paused > CLOSE) c->spins = now;
    if (now - c->spins > LONG) c->rests++, sleep_for(MOMENT);
    c->paused = __builtin_ia32_rdtsc();
}

void h_helper_pause(void *env, int length) {
    struct cpu *c = cpu_of_env(env);
    if (c && is_time_to_look(c)) hooks_kick(c);
    if (c && c->group && c->group->others_wait) {
        c->group->pauses++;
        stop_engine(c);
    } else if (c && !c->on_spin) rest(c);
    TAIL e_helper_pause(env, length);
}

/* The flags that these leave alone. The engine keeps their operation in a variable that it writes at the end of a block. */
enum { CC_OP_IN_VARIABLE = 0 };
#define EXCHANGE(name, ...) \
    void h_##name(void *env, u64 at, u32 cc_op) { \
        if (cc_op != CC_OP_IN_VARIABLE) AT(u32, env, ENV_CC_OP) = cc_op; \
        TAIL e_##name(env, at, cc_op); \
    }
CMPXCHG_HELPERS(EXCHANGE)

/* SMSW to a register of 32 bits, outside of 64-bit code: the engine writes 16 of them. RIP is on it. */
void execute_here(struct cpu *c) {
    void *env = (void *)c->env;
    u32 rip = AT(u32, env, ENV_RIP), base = AT(u32, env, ENV_CS + SEGMENT_BASE);
    while ((e_cpu_ldub_code(env, base + rip) & 0xff) != 0x0f) rip++;
    u32 operand = e_cpu_ldub_code(env, base + rip + 2);
    (&AT(u64, env, ENV_RAX))[operand & 7] = AT(u32, env, ENV_CR0);
    AT(u64, env, ENV_RIP) = rip + 3;
    AT(u32, env, ENV_HFLAGS) &= ~HIDDEN_INHIBIT_IRQ;
    AT(u64, env, ENV_EFLAGS) &= ~(u64)RF;
}
