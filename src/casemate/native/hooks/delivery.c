/* Exceptions, interrupts and SYSCALL (Intel SDM volume 3, chapter 6; AMD APM volume 2, 6.1).

   The engine carries a full delivery - gates, privilege change, task state, error codes, double and triple faults - and
   leaves it unused: it calls a hook instead. The hooks here go on to that delivery. It may leave by a long jump past all
   of its callers, so no Python function may stand between. */
#include "cpu.h"

enum { HIGHEST_VECTOR = 255, LONG_GATE = 16, GATE = 8, OF_IDT = 2, EXTERNAL = 1 };

/* #VC is younger than the engine, which pushes no error code for it. Vector 17 has one, so the table is moved for the
   moment: its gate 17 is the guest's gate 29 then. Neither is a contributory exception. */
static void move_idt(struct cpu *c) {
    u32 by = (VECTOR_VC - VECTOR_AC) * (AT(u32, c->env, ENV_HFLAGS) & HIDDEN_LMA ? LONG_GATE : GATE);
    u32 *limit = &AT(u32, c->env, ENV_IDT + SEGMENT_LIMIT);
    if (*limit < by) return; /* the engine finds no gate 29 then, as it should */
    AT(u64, c->env, ENV_IDT + SEGMENT_BASE) += by;
    *limit -= by;
    c->idt_moved = by;
}

static void restore_idt(struct cpu *c) {
    u32 by = c->idt_moved;
    c->idt_moved = 0;
    AT(u64, c->env, ENV_IDT + SEGMENT_BASE) -= by;
    AT(u32, c->env, ENV_IDT + SEGMENT_LIMIT) += by;
}

/* The delivery met an exception itself. That of INT was an instruction's, which did not happen then. In 64-bit mode the
   engine names gates by their offset in the table instead of their number, and it never says that the event was no
   instruction's (Intel SDM volume 3, 6.13). */
void abandon_delivery(struct cpu *c) {
    void *env = (void *)c->env;
    u32 *code = &AT(u32, env, ENV_ERROR_CODE), vector = c->delivering - 1, raised = AT(u32, c->cpu, CPU_EXCEPTION_INDEX);
    restore_stack(c); /* of IRET, too */
    if (!c->delivering) return;
    c->delivering = 0;
    if (raised >= VECTOR_TS && raised <= VECTOR_GP) {
        u32 gate = AT(u32, env, ENV_HFLAGS) & HIDDEN_LMA ? LONG_GATE : GATE;
        if (*code == (c->idt_moved ? VECTOR_AC : vector) * gate + OF_IDT) *code = vector * GATE + OF_IDT;
        if (!c->int_length) *code |= EXTERNAL;
    }
    if (c->int_length) {
        u64 rip = AT(u64, env, ENV_RIP) - c->int_length;
        AT(u64, env, ENV_RIP) = AT(u32, env, ENV_HFLAGS) & HIDDEN_CS64 ? rip : (u32)rip;
    }
    restore_idt(c);
}

void begin_delivery(struct cpu *c, u32 vector, u32 int_length) {
    c->delivering = 1 + vector, c->int_length = int_length;
    move_stack(c);
}

void end_delivery(struct cpu *c) {
    c->delivering = 0;
    restore_idt(c);
    restore_stack(c);
}

/* Exceptions whose instruction is executed again: none that is a trap, an abort or of a breakpoint. */
#define FAULTS 0x603b7ce1u

static void deliver(struct cpu *c, u32 vector) {
    begin_delivery(c, vector, AT(u32, c->env, ENV_IS_INT) ? c->int_length : 0);
    if (!c->int_length && vector < 32 && FAULTS >> vector & 1) AT(u64, c->env, ENV_EFLAGS) |= RF; /* to be pushed */
    if (vector == VECTOR_VC) {
        c->vc[AT(u32, c->env, ENV_ERROR_CODE) & (EXIT_CODES - 1)]++;
        if (AT(u32, c->env, ENV_HFLAGS) & HIDDEN_PE) {
            move_idt(c);
            if (c->idt_moved) vector = VECTOR_AC;
        }
    }
    AT(i32, c->cpu, CPU_EXCEPTION_INDEX) = vector;
    e_x86_cpu_do_interrupt((void *)c->cpu);
    end_delivery(c);
}

/* Exceptions that are the debugger's (Linux api.rst, KVM_SET_GUEST_DEBUG): the guest stands where they were raised. */
static int is_debugged(struct cpu *c, u32 vector) {
    u32 wanted = vector == VECTOR_DB ? DEBUGS_STEPS : vector == VECTOR_BP ? DEBUGS_INT3 : 0;
    if (!(c->debug & wanted) && vector != AT_BREAKPOINT && vector != AT_DEBUG_REGISTER) return 0;
    c->debugged = 1 + vector;
    if (vector == VECTOR_BP) AT(u64, c->env, ENV_RIP) -= c->int_length; /* the engine is behind it already */
    stop_engine(c);
    return 1;
}

/* The engine calls it for every access to memory once data was watched. The access is made, and its instruction is the
   last of its block (translate.c). */
EXPORT void hook_access(void *uc, int type, u64 gpa, int size, i64 value, struct cpu *c) {
    enum { READ = 16 }; /* uc_mem_type */
    u64 hits = 0;
    (void)uc, (void)value;
    for (u64 i = 0; i < c->watch_count; i++)
        if (gpa < c->watches[i].end && gpa + size > c->watches[i].start && (type != READ || c->watches[i].sees_reads))
            hits |= 1ull << i;
    if (!hits) return;
    c->watch_hits |= hits, c->debugged = 1 + VECTOR_DB;
    stop_engine(c);
}

EXPORT void hook_interrupt(void *uc, u32 vector, struct cpu *c) {
    if (is_debugged(c, vector)) return;
    if (vector <= HIGHEST_VECTOR) deliver(c, vector);
    else if (vector == EXECUTED_HERE) execute_here(c);
    else hand_over(c), c->on_pseudo(uc, vector, c), look_for_interrupts(c);
}

/* Whether the code at RIP is `code`. Not more of it is fetched than the engine did to find the instruction invalid. */
static int is_at_rip(struct cpu *c, const u8 *code, int size) {
    void *env = (void *)c->env;
    u64 at = AT(u64, env, ENV_RIP), mask = ~0ull;
    if (!(AT(u32, env, ENV_HFLAGS) & HIDDEN_CS64)) at += AT(u64, env, ENV_CS + SEGMENT_BASE), mask = ~0u;
    for (int i = 0; i < size; i++)
        if ((u8)e_cpu_ldub_code(env, (at + i) & mask) != code[i]) return 0;
    return 1;
}

/* Instructions that the engine does not know and the model does. */
static const u8 vmcall[] = {0x0f, 0x01, 0xc1}, vmmcall[] = {0x0f, 0x01, 0xd9}, vmgexit[] = {0xf3, 0x0f, 0x01, 0xd9};
static const u8 pvalidate[] = {0xf2, 0x0f, 0x01, 0xff}, rmpadjust[] = {0xf3, 0x0f, 0x01, 0xfe};

EXPORT int hook_invalid(void *uc, struct cpu *c) {
    u32 answer = UNDEFINED;
    (void)uc;
    if (c->flags & SERVES_GHCB && is_at_rip(c, vmgexit, sizeof vmgexit) && serve_ghcb(c)) {
        AT(u64, c->env, ENV_RIP) += sizeof vmgexit;
        return 1;
    }
    if (is_at_rip(c, vmmcall, sizeof vmmcall) || is_at_rip(c, vmcall, sizeof vmcall) || is_at_rip(c, vmgexit, sizeof vmgexit) ||
        is_at_rip(c, pvalidate, sizeof pvalidate) || is_at_rip(c, rmpadjust, sizeof rmpadjust)) {
        hand_over(c);
        answer = c->on_instruction();
        look_for_interrupts(c);
    }
    if (answer == EXECUTED) return 1;
    if (answer != UNDEFINED) AT(u32, c->env, ENV_ERROR_CODE) = answer;
    deliver(c, answer == UNDEFINED ? VECTOR_UD : VECTOR_VC);
    return 1;
}

/* Only delivery calls it, where the task state segment is none. */
void h_cpu_abort(void *cpu, const char *format) {
    struct cpu *c = find_cpu((u64)cpu);
    if (!c) e_cpu_abort(cpu, format);
    raise(c, VECTOR_TS, AT(u32, c->env, ENV_TR + SEGMENT_SELECTOR) & 0xfffc, 0);
}

/* SYSCALL and SYSENTER, of which the engine's own only skip the instruction. */

enum { KEPT_APART = 0xcd5 }; /* CF, PF, AF, ZF, SF, OF, DF */

/* Flat segments of the kernel, selectors `code` and the next. */
static void enter_kernel(void *env, u32 code, int is_64_bit, u64 rip) {
    enum { CODE64 = 0xa09b00, CODE32 = 0xc09b00, DATA = 0xc09300 };
    u32 hidden = (AT(u32, env, ENV_HFLAGS) & ~(HIDDEN_CPL | HIDDEN_ADDSEG | HIDDEN_CS64)) | HIDDEN_CS32 | HIDDEN_SS32;
    AT(u32, env, ENV_CS + SEGMENT_SELECTOR) = code, AT(u32, env, ENV_SS + SEGMENT_SELECTOR) = code + 8;
    AT(u64, env, ENV_CS + SEGMENT_BASE) = AT(u64, env, ENV_SS + SEGMENT_BASE) = 0;
    AT(u32, env, ENV_CS + SEGMENT_LIMIT) = AT(u32, env, ENV_SS + SEGMENT_LIMIT) = ~0u;
    AT(u32, env, ENV_CS + SEGMENT_FLAGS) = is_64_bit ? CODE64 : CODE32, AT(u32, env, ENV_SS + SEGMENT_FLAGS) = DATA;
    if (is_64_bit) hidden |= HIDDEN_CS64;
    else if (AT(u64, env, ENV_DS + SEGMENT_BASE) | AT(u64, env, ENV_ES + SEGMENT_BASE)) hidden |= HIDDEN_ADDSEG;
    AT(u32, env, ENV_HFLAGS) = hidden;
    AT(u64, env, ENV_RIP) = rip;
}

void h_helper_syscall(void *env, i32 length) {
    enum { SCE = 1 };
    u32 hidden = AT(u32, env, ENV_HFLAGS);
    if (!(hidden & HIDDEN_LMA) || !(AT(u32, env, ENV_EFER) & SCE)) {
        e_raise_exception_err_ra(env, VECTOR_UD, 0, CALLER);
        NEVER_RETURNS;
    }
    AT(u64, env, ENV_RCX) = AT(u64, env, ENV_RIP) + length;
    u64 flags = (u32)e_helper_read_eflags(env) & ~RF;
    AT(u64, env, ENV_R11) = flags;
    e_helper_write_eflags(env, flags & ~AT(u32, env, ENV_FMASK), ~KEPT_APART);
    enter_kernel(env, AT(u16, env, ENV_STAR + 4) & 0xfffc, 1, AT(u64, env, hidden & HIDDEN_CS64 ? ENV_LSTAR : ENV_CSTAR));
}

/* AMD's processors have it outside of long mode only. */
void h_helper_sysenter(void *env, i32 length) {
    enum { IF = 1 << 9, VM = 1 << 17 };
    u32 code = AT(u32, env, ENV_SYSENTER_CS) & 0xfffc, is_long = !!(AT(u32, env, ENV_HFLAGS) & HIDDEN_LMA);
    (void)length;
    int is_unknown = is_long && is_amd(env);
    if (is_unknown || !code) {
        e_raise_exception_err_ra(env, is_unknown ? VECTOR_UD : VECTOR_GP, 0, CALLER);
        NEVER_RETURNS;
    }
    AT(u64, env, ENV_EFLAGS) &= ~(u64)(IF | VM | RF); /* the others are kept apart, and may not be up to date */
    u64 mask = is_long ? ~0ull : ~0u;
    AT(u64, env, ENV_RSP) = AT(u64, env, ENV_SYSENTER_ESP) & mask;
    enter_kernel(env, code, is_long, AT(u64, env, ENV_SYSENTER_EIP) & mask);
}
