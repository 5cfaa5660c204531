/* Translation of blocks: calls of helpers, the check whether to stop, instructions that the engine gets wrong, and
   translations that fail an assertion of the engine's, which would take this process down. */
#include "cpu.h"

enum { TYPE_I32 = 0, PREFIX_LOCK = 0xf0, OPCODE_0F = 0x0f };

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

/* It stands in the list of helpers only for the pair's sake. */
void h_helper_check_exit_request(void *uc, u32 kind) { TAIL e_helper_check_exit_request(uc, kind); }

void h_tcg_gen_callN(void *s, void *function, void *result, int count, void **arguments) {
    void *uc = AT(void *, s, TCG_UC);
    struct cpu *c = find_cpu(AT(u64, uc, UC_CPU));
    if (!c) e_tcg_gen_callN(s, function, result, count, arguments);
    else if (function == (void *)e_helper_check_exit_request) check_exit_request(s, uc);
    else call(c, s, function, result, count, arguments);
}

/* Instructions that must not be translated as the engine does: INVD and WBINVD of a SEV-ES guest, which it translates to
   nothing, and LOCK BT, for which it makes code that loads from wherever an address was left. They are known by their
   bytes while it reads them. The block is then translated anew, one instruction long; where it begins
   with such an instruction the guest gets the exception that is due. */

static int is_legacy_prefix(u8 byte) {
    switch (byte) {
    case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65: case 0x66: case 0x67: case 0xf0: case 0xf2: case 0xf3:
        return 1;
    }
    return 0;
}

/* The bytes from the instruction's first to its opcode, at `opcode`: whether there are prefixes only; LOCK is told. */
static int are_prefixes(struct cpu *c, u64 opcode, int *has_lock) {
    int is_64_bit = !!(AT(u32, c->env, ENV_HFLAGS) & HIDDEN_CS64);
    *has_lock = 0;
    for (u64 at = AT(u64, c->block, BLOCK_PC_NEXT); at != opcode; at++) {
        u8 byte = e_cpu_ldub_code((void *)c->env, at);
        int is_rex = is_64_bit && (byte & 0xf0) == 0x40;
        if (opcode - at > 15 || (!is_legacy_prefix(byte) && !is_rex)) return 0;
        *has_lock |= byte == PREFIX_LOCK;
    }
    return 1;
}

/* BT, the last byte being its operand. */
static int is_bit_test(u32 window) {
    u32 opcode = window >> 8 & 0xff, operation = window >> 3 & 7;
    return (window >> 16 & 0xff) == OPCODE_0F && (opcode == 0xa3 || (opcode == 0xba && operation == 4));
}

static void look_at(struct cpu *c, u64 at, u8 byte) {
    int has_lock;
    c->window = at == c->window_end ? c->window << 8 | byte : byte;
    c->window_end = at + 1;
    if ((c->window & 0xfffe) == 0x0f08 && c->flags & RAISES_VC && !(AT(u32, c->env, ENV_HFLAGS) & HIDDEN_CPL)) {
        if (!are_prefixes(c, at - 1, &has_lock)) return;
        c->bad_exit_code = byte == 8 ? EXIT_INVD : EXIT_WBINVD;
    } else {
        if (!is_bit_test(c->window) || !are_prefixes(c, at - 2, &has_lock) || !has_lock) return;
        c->bad_exit_code = 0;
    }
    __builtin_longjmp(c->undo, 1);
}

u32 h_cpu_ldub_code(void *env, u64 at) {
    u32 byte = e_cpu_ldub_code(env, at);
    struct cpu *c = cpu_of_env(env);
    if (c && c->is_translating && c->block) {
        if (at == AT(u64, c->block, BLOCK_PC_NEXT)) end_block_at_site(c, at);
        look_at(c, at, byte);
    }
    return byte;
}

void h_translator_loop(void *operations, void *block, void *cpu, void *tb, int limit) {
    struct cpu *c = find_cpu((u64)cpu);
    if (c) c->block = block, c->window_end = 0;
    e_translator_loop(operations, block, cpu, tb, limit);
    if (c) c->block = 0;
}

/* Which CPU this thread is about to run code of. */
static __thread struct cpu *executing __attribute__((tls_model("global-dynamic")));

/* The translated block, or 0 if it was given up. */
static __attribute__((noinline)) void *try_translation(struct cpu *c, u64 pc, u64 cs_base, u32 flags, int cflags) {
    void *volatile translated = 0;
    c->bad_exit_code = 0;
    c->is_translating = 1;
    if (!__builtin_setjmp(c->undo)) translated = e_tb_gen_code((void *)c->cpu, pc, cs_base, flags, cflags);
    else c->undone++;
    c->is_translating = 0;
    c->block = 0;
    return translated;
}

void *h_tb_gen_code(void *cpu, u64 pc, u64 cs_base, u32 flags, int cflags) {
    struct cpu *c = find_cpu((u64)cpu);
    if (!c || executing != c) return e_tb_gen_code(cpu, pc, cs_base, flags, cflags);
    void *block = try_translation(c, pc, cs_base, flags, cflags);
    if (!block) block = try_translation(c, pc, cs_base, flags, (cflags & ~INSTRUCTION_LIMIT) | 1);
    if (block) return block;
    if (c->bad_exit_code) raise(c, VECTOR_VC, c->bad_exit_code, 0);
    raise(c, VECTOR_UD, 0, 0);
}

/* An exception of the guest leaves for the engine's main loop from wherever it is. */
void h_siglongjmp(void *buffer, int value) {
    struct cpu *c = executing;
    if (c) {
        c->is_translating = 0;
        c->block = 0;
        abandon_delivery(c);
    }
    e_siglongjmp(buffer, value);
}

static int (*emu_start)(void *uc, u64 begin, u64 until, u64 timeout, u64 count);
static int (*emu_stop)(void *uc);

EXPORT void hooks_set_engine(void *start, void *stop) { emu_start = start, emu_stop = stop; }

void stop_engine(struct cpu *c) { emu_stop(AT(void *, c->cpu, CPU_UC)); }

/* Execute from rip; returns the engine's error number. */
EXPORT int hooks_run(struct cpu *c, void *uc, u64 rip) {
    struct cpu *outer = executing;
    executing = c;
    show_apic(c);
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
