/* Translation of blocks: calls of helpers, the check whether to stop, instructions that the engine gets wrong, and
   translations that fail an assertion of the engine's, which would take this process down. */
#include "cpu.h"

enum { TYPE_I32 = 0, OPCODE_0F = 0x0f };

/* Helpers. The engine knows them by the addresses of its own functions, so the call is made as usual and ours put in
   its place in the operation that was just appended, which ends with the function. */

#define PAIR(name, ...) {(void *)&e_##name, (void *)h_##name},
static const struct { void **theirs; void *ours; } helpers[] = {HELPERS(PAIR) VC_HELPERS(PAIR) IN_HELPERS(PAIR) OUT_HELPERS(PAIR)};

static void *ours_for(void *function) {
    for (u64 i = 0; i < sizeof helpers / sizeof *helpers; i++)
        if (*helpers[i].theirs == function) return helpers[i].ours;
    return 0;
}

static int is_output(void *function) {
#define OR_IS(name, bytes) || function == (void *)e_##name
    return 0 OUT_HELPERS(OR_IS);
}

static void call(struct cpu *c, void *s, void *function, void *result, int count, void **arguments) {
    e_tcg_gen_callN(s, function, result, count, arguments);
    void *ours = ours_for(function);
    if (!ours) return;
    if (c->block && (is_output(function) || function == (void *)e_helper_wrmsr)) end_block(c);
    void *last = AT(char *, s, TCG_LAST_OP) - OP_LINK;
    void **place = &AT(void *, last, OP_ARGUMENTS + 8 * (count + !!result));
    if (*place == function) *place = ours;
}

/* The check at the start of each block becomes a load and a branch around the call. */
static void check_exit_request(void *s, void *uc) {
    char *base = s, *word = e_tcg_temp_new_internal(s, TYPE_I32, 0);
    i32 offset = (i32)CPU_EXIT_WORD - (i32)CPU_ENV;
    e_tcg_gen_op3(s, OP_LD_I32, (uintptr_t)word, AT(uintptr_t, s, TCG_CPU_ENV) + (uintptr_t)s, (uintptr_t)(intptr_t)offset);
    u16 *go_on = e_gen_new_label(s);
    uintptr_t zero = e_tcg_const_i32(s, 0);
    e_tcg_gen_brcond_i32(s, CONDITION_GE, (uintptr_t)(word - base), zero, go_on);
    void *arguments[2] = {base + e_tcg_const_i64(s, (u64)uc), base + e_tcg_const_i32(s, 0)};
    e_tcg_gen_callN(s, (void *)e_helper_check_exit_request, 0, 2, arguments);
    *go_on |= LABEL_PRESENT;
    e_tcg_gen_op1(s, OP_SET_LABEL, (uintptr_t)go_on);
    e_tcg_temp_free_internal(s, arguments[0]);
    e_tcg_temp_free_internal(s, arguments[1]);
    e_tcg_temp_free_internal(s, base + zero);
    e_tcg_temp_free_internal(s, word);
}

/* Our helper is told more of the instruction than the engine's. */
static void call_testbit(struct cpu *c, void *s, void **arguments) {
    enum { CR4_FSGSBASE = 1 << 16 };
    void *bits = (char *)s + e_tcg_const_i32(s, with_operand(CR4_FSGSBASE, c->window));
    void *ours[2] = {arguments[0], bits};
    call(c, s, (void *)e_helper_cr4_testbit, 0, 2, ours);
    e_tcg_temp_free_internal(s, bits);
}

static int is_exchange(void *function) {
#define OR_IS_EXCHANGE(name, ...) || function == (void *)e_##name
    return 0 CMPXCHG_HELPERS(OR_IS_EXCHANGE);
}

/* The engine computes the flags that CMPXCHG8B and CMPXCHG16B leave alone from how it kept them at the end of the last block:
   all of RFLAGS is what an operand was. An interrupt right behind such an instruction saves that, and IRET takes it. */
static void call_exchange(struct cpu *c, void *s, void *function, void **arguments) {
    void *cc_op = (char *)s + e_tcg_const_i32(s, AT(i32, c->block, BLOCK_CC_OP));
    void *ours[3] = {arguments[0], arguments[1], cc_op};
    call(c, s, function, 0, 3, ours);
    e_tcg_temp_free_internal(s, cc_op);
}

/* Whose block it is is known now: ours is told the CPU. */
static void call_lookup(struct cpu *c, void *s, void *result) {
    void *ours[1] = {(char *)s + e_tcg_const_i64(s, (u64)c)};
    call(c, s, (void *)e_helper_lookup_tb_ptr, result, 1, ours);
    e_tcg_temp_free_internal(s, ours[0]);
}

/* A call of our own, which is made as one of a helper that may change every register. */
void call_with_cpu(struct cpu *c, void *function, u32 value) {
    void *s = c->context, *model = (void *)e_helper_syscall;
    void *arguments[2] = {(char *)s + e_tcg_const_i64(s, (u64)c), (char *)s + e_tcg_const_i32(s, value)};
    e_tcg_gen_callN(s, model, 0, 2, arguments);
    AT(void *, AT(char *, s, TCG_LAST_OP) - OP_LINK, OP_ARGUMENTS + 8 * 2) = function;
    e_tcg_temp_free_internal(s, arguments[0]);
    e_tcg_temp_free_internal(s, arguments[1]);
}

void h_tcg_gen_callN(void *s, void *function, void *result, int count, void **arguments) {
    void *uc = AT(void *, s, TCG_UC);
    struct cpu *c = find_cpu(AT(u64, uc, UC_CPU));
    if (!c) e_tcg_gen_callN(s, function, result, count, arguments);
    else if (function == (void *)e_helper_check_exit_request) check_exit_request(s, uc);
    else if (function == (void *)e_helper_cr4_testbit) call_testbit(c, s, arguments);
    else if (c->block && is_exchange(function)) call_exchange(c, s, function, arguments);
    else if (function == (void *)e_helper_lookup_tb_ptr) call_lookup(c, s, result);
    else call(c, s, function, result, count, arguments);
}

/* Instructions that must not be translated as the engine does: INVD and WBINVD of a SEV-ES guest, which it translates to
   nothing; LOCK BT, for which it makes code that loads from wherever an address was left; SMSW of 32 bits, of which it
   makes 16; AVX; and what CR4.UMIP keeps from user mode, which it does not know. They are known by their bytes while it reads
   them. The block then ends before such an instruction; where it begins with it the guest gets the exception that is
   due, or the instruction is executed by control.c. */

static int is_legacy_prefix(u8 byte) {
    switch (byte) {
    case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65: case 0x66: case 0x67: case 0xf0: case 0xf2: case 0xf3:
        return 1;
    }
    return 0;
}

enum { HAS_LOCK = 1, HAS_OPERAND_SIZE = 2 };

/* The bytes from the instruction's first to its opcode, at `opcode`: -1 if they are no prefixes, else which there are. */
static int prefixes(struct cpu *c, u64 opcode) {
    int is_64_bit = !!(AT(u32, c->env, ENV_HFLAGS) & HIDDEN_CS64), found = 0;
    for (u64 at = AT(u64, c->block, BLOCK_PC_NEXT); at != opcode; at++) {
        u8 byte = e_cpu_ldub_code((void *)c->env, at);
        int is_rex = is_64_bit && (byte & 0xf0) == 0x40;
        if (opcode - at > 15 || (!is_legacy_prefix(byte) && !is_rex)) return -1;
        found |= byte == 0xf0 ? HAS_LOCK : byte == 0x66 ? HAS_OPERAND_SIZE : 0;
    }
    return found;
}

/* Leaves the translation. */
static __attribute__((noreturn)) void refuse(struct cpu *c, u32 vector, u32 code) {
    c->bad_vector = vector, c->bad_code = code;
    __builtin_longjmp(c->undo, 1);
}

/* BT, the last byte being its operand. */
static int is_bit_test(u32 window) {
    u32 opcode = window >> 8 & 0xff, operation = window >> 3 & 7;
    return (window >> 16 & 0xff) == OPCODE_0F && (opcode == 0xa3 || (opcode == 0xba && operation == 4));
}

/* 0F 00 and 0F 01, the last byte being the operand: SLDT and STR; SGDT, SIDT and SMSW. */
static void look_at_store(struct cpu *c, u64 at, u32 window) {
    enum { CR4_UMIP = 1 << 11, SMSW = 4 };
    u32 hidden = AT(u32, c->env, ENV_HFLAGS), operation = window >> 3 & 7, is_register = (window & 0xc0) == 0xc0;
    int is_smsw = window >> 8 & 1 && operation == SMSW;
    if (!is_smsw && (operation > 1 || (window >> 8 & 1 && is_register))) return;
    int found = prefixes(c, at - 2);
    if (found < 0 || found & HAS_LOCK) return;
    if (hidden & HIDDEN_CPL && hidden & HIDDEN_PE && AT(u64, c->env, ENV_CR4) & CR4_UMIP) refuse(c, VECTOR_GP, 0);
    int is_wide = !(hidden & HIDDEN_CS32) == !!(found & HAS_OPERAND_SIZE);
    if (is_smsw && is_register && is_wide && !(hidden & HIDDEN_CS64)) refuse(c, EXECUTED_HERE, 0);
}

/* How many bytes ago an instruction with a VEX prefix began that is not one of BMI; 0 if none did. The engine, which has
   no AVX, executes such as it does without the prefix. Outside of 64-bit mode they are LDS and LES with memory. */
static int since_vex(u32 window, int is_64_bit) {
    u32 byte = window & 0xff, before = window >> 8 & 0xff, third = window >> 16 & 0xff, map = third & 0x1f;
    int is_vex = is_64_bit || byte >= 0xc0;
    if (is_vex && (before == 0xc5 || (before == 0xc4 && (byte & 0x1f) == 1))) return 1;
    if (window >> 24 != 0xc4 || !(is_64_bit || third >= 0xc0)) return 0;
    if (map == 2) return byte != 0xf2 && byte != 0xf3 && (byte < 0xf5 || byte > 0xf7) ? 3 : 0;
    return map == 3 && byte != 0xf0 ? 3 : 0;
}

/* Addresses relative to RIP are so to the next instruction. Of SHLD and SHRD by a number, and of RORX, the engine does not
   know at the address that a byte is still to come. Since how many bytes such an opcode is read, 0 for others. */
static int since_shift_by_number(u32 window) {
    if ((window & 0xfff7) == 0x0fa4) return 1;
    return window >> 24 == 0xc4 && (window >> 16 & 0x1f) == 3 && (window & 0xff) == 0xf0 ? 3 : 0;
}

static void look_at(struct cpu *c, u64 at, u8 byte) {
    u32 window = c->window = at == c->window_end ? c->window << 8 | byte : byte;
    c->window_end = at + 1;
    if ((byte & 0xfe) == 0xa4 || (byte & 0xfe) == 0xaa) translate_repetition(c, at, window);
    if ((window & 0xfffe) == 0x0f08 && c->flags & RAISES_VC && !(AT(u32, c->env, ENV_HFLAGS) & HIDDEN_CPL)) {
        if (prefixes(c, at - 1) >= 0) refuse(c, VECTOR_VC, byte == 8 ? EXIT_INVD : EXIT_WBINVD);
    } else if (is_bit_test(window)) {
        if (prefixes(c, at - 2) > 0 && prefixes(c, at - 2) & HAS_LOCK) refuse(c, VECTOR_UD, 0);
    } else if ((window & 0xfffe00) == 0x0f0000) {
        look_at_store(c, at, window);
    } else {
        int shift = since_shift_by_number(window);
        if (shift && prefixes(c, at - shift) >= 0) AT(i32, c->block, BLOCK_RIP_OFFSET) = 1;
        int bytes = since_vex(window, !!(AT(u32, c->env, ENV_HFLAGS) & HIDDEN_CS64));
        if (bytes && prefixes(c, at - bytes) >= 0) refuse(c, VECTOR_UD, 0);
    }
}

u32 h_cpu_ldub_code(void *env, u64 at) {
    u32 byte = e_cpu_ldub_code(env, at);
    struct cpu *c = cpu_of_env(env);
    if (c && c->is_translating && c->block) {
        if (at == AT(u64, c->block, BLOCK_PC_NEXT)) {
            for (u64 i = 0; i < c->breakpoint_count; i++)
                if (c->breakpoints[i] == at) refuse(c, AT_BREAKPOINT, 0);
            end_block_at_site(c, at);
            choose_atomics(c, at);
        }
        look_at(c, at, byte);
    }
    return byte;
}

typedef void (*start_block)(void *block, void *cpu);
static start_block engines_start;

/* With RF set the engine clears it where the block ends, if that is by no direct jump. So the block has one instruction,
   and no direct jump, for the engine believes that interrupts are inhibited. */
static void start_with_rf(void *block, void *cpu) {
    u32 *flags = &AT(u32, AT(char *, block, 0), TB_FLAGS), before = *flags;
    *flags |= HIDDEN_INHIBIT_IRQ;
    engines_start(block, cpu);
    *flags = before;
}

void h_translator_loop(void *operations, void *block, void *cpu, void *tb, int limit) {
    struct cpu *c = find_cpu((u64)cpu);
    void *ours[OPERATIONS];
    if (c) {
        c->block = block, c->window_end = 0;
        if (c->limit && (u32)limit > c->limit) limit = c->limit;
        if (c->watch_count) limit = 1;
        if (AT(u32, tb, TB_FLAGS) & RF) {
            for (int i = 0; i < OPERATIONS; i++) ours[i] = ((void **)operations)[i];
            engines_start = (start_block)ours[0], ours[0] = (void *)start_with_rf;
            operations = ours, limit = 1;
        }
    }
    e_translator_loop(operations, block, cpu, tb, limit);
    if (c) c->block = 0;
}

/* Which CPU this thread is about to run code of. */
static __thread struct cpu *executing __attribute__((tls_model("global-dynamic")));

/* The translated block, or 0 if it was given up; then the limit is how many instructions went well, if that is known. */
static __attribute__((noinline)) void *try_translation(struct cpu *c, u64 pc, u64 cs_base, u32 flags, int cflags) {
    void *volatile translated = 0;
    c->bad_vector = VECTOR_UD, c->bad_code = 0;
    c->is_translating = 1;
    if (!__builtin_setjmp(c->undo)) translated = e_tb_gen_code((void *)c->cpu, pc, cs_base, flags, cflags);
    else c->undone++, c->limit = c->block ? AT(i32, c->block, BLOCK_INSTRUCTIONS) - 1 : c->limit != 1;
    c->is_translating = 0;
    c->block = 0;
    return translated;
}

void *h_tb_gen_code(void *cpu, u64 pc, u64 cs_base, u32 flags, int cflags) {
    struct cpu *c = find_cpu((u64)cpu);
    if (!c || executing != c) return e_tb_gen_code(cpu, pc, cs_base, flags, cflags);
    c->limit = 0;
    void *block = try_translation(c, pc, cs_base, flags, cflags);
    while (!block && c->limit) block = try_translation(c, pc, cs_base, flags, cflags);
    if (block) return block;
    raise(c, c->bad_vector, c->bad_code, 0);
}

/* An exception of the guest leaves for the engine's main loop from wherever it is. */
void h_siglongjmp(void *buffer, int value) {
    struct cpu *c = executing;
    if (c) {
        c->is_translating = 0;
        c->is_walking = 0;
        c->block = 0;
        abandon_delivery(c);
    }
    e_siglongjmp(buffer, value);
}

/* For who lets a CPU go on in another thread: what this thread executes now, and what it did before. */
EXPORT struct cpu *hooks_exchange(struct cpu *now) {
    struct cpu *before = executing;
    executing = now;
    if (now) go_on(now);
    return before;
}

int is_executing(struct cpu *c) { return executing == c; }

static int (*emu_start)(void *uc, u64 begin, u64 until, u64 timeout, u64 count);
static int (*emu_stop)(void *uc);

EXPORT void hooks_set_engine(void *start, void *stop) { emu_start = start, emu_stop = stop; }

void stop_engine(struct cpu *c) { emu_stop(AT(void *, c->cpu, CPU_UC)); }

/* Execute from rip; returns the engine's error number. */
EXPORT int hooks_run(struct cpu *c, void *uc, u64 rip) {
    struct cpu *outer = executing;
    executing = c;
    c->stamp++;
    forget_walks(c);
    begin_turn(c);
    look_for_interrupts(c);
    int error = emu_start(uc, rip, 0, 0, 0);
    executing = outer;
    hand_over(c);
    return error;
}

/* An engine makes its CPU when it is first used, and exits where there is no memory for that. */
static __thread void **creating __attribute__((tls_model("global-dynamic")));

/* Use the engine for the first time, by its function `read`; 0 if it gave up, and can be used for nothing then. */
EXPORT __attribute__((noinline)) int hooks_create_cpu(int (*read)(void *uc, int number, void *value), void *uc, int number) {
    void *back[5];
    u64 value;
    volatile int is_made = 0;
    creating = back;
    if (!__builtin_setjmp(back)) {
        read(uc, number, &value);
        is_made = 1;
    }
    creating = 0;
    return is_made;
}

static void give_up(void) {
    struct cpu *c = executing;
    if (creating) __builtin_longjmp(creating, 1);
    if (c && c->is_translating) __builtin_longjmp(c->undo, 1);
    if (c) {
        c->aborted++;
        abandon_delivery(c);
        emu_stop(AT(void *, c->cpu, CPU_UC));
        e_cpu_loop_exit((void *)c->cpu);
    }
}

/* In place of the engine's abort and exit: the guest ends, the process does not. */
void hooks_abort(void) {
    give_up();
    e_abort();
}

void h_exit(int status) {
    give_up();
    e_exit(status);
}
