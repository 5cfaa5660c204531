/* What the engine gets wrong of x87, MMX and SSE, as far as it does it in functions of its own; found by comparison with a
   processor (docs/design/cpu.md). */
#include "cpu.h"

/* PCMPESTRI and PCMPESTRM: for the least of all lengths the engine reads far outside of its registers, which takes this
   process down. The absolute value counts, and 16 bytes at most (Intel SDM volume 2). */

/* The length in a register, 32 bits of it without REX.W, which bit 8 of the last argument stands for. */
static u64 at_most_16(u64 length, u32 control) {
    i64 value = control >> 8 ? (i64)length : (i32)length;
    return value < -16 || value > 16 ? 16 : (u64)value;
}

static void compare(void (*engines)(void *, void *, void *, u32), void *env, void *first, void *second, u32 control) {
    u64 rax = AT(u64, env, ENV_RAX), rdx = AT(u64, env, ENV_RDX);
    AT(u64, env, ENV_RAX) = at_most_16(rax, control);
    AT(u64, env, ENV_RDX) = at_most_16(rdx, control);
    engines(env, first, second, control);
    AT(u64, env, ENV_RAX) = rax, AT(u64, env, ENV_RDX) = rdx;
}

void h_helper_pcmpestri_xmm(void *env, void *first, void *second, u32 control) {
    compare(e_helper_pcmpestri_xmm, env, first, second, control);
}

void h_helper_pcmpestrm_xmm(void *env, void *first, void *second, u32 control) {
    compare(e_helper_pcmpestrm_xmm, env, first, second, control);
}

/* MXCSR.FZ makes small results of SSE zero; the engine tells x87 of it instead. */
void h_update_mxcsr_status(void *env) {
    e_update_mxcsr_status(env);
    AT(u8, env, ENV_SSE_FLUSH) = AT(u8, env, ENV_X87_FLUSH);
    AT(u8, env, ENV_X87_FLUSH) = 0;
}

/* PHADD and PHSUB of a register and itself: the engine reads what it has already written. */

struct vector { u64 low, high; };

#define DEFINE_HORIZONTAL(name, ...) \
    void h_##name(void *env, void *to, void *from) { \
        struct vector copy = *(struct vector *)from; \
        e_##name(env, to, &copy); \
    }
HORIZONTAL_HELPERS(DEFINE_HORIZONTAL)

/* MMX. SSSE3's instructions of it change to MMX mode, as all others, and there are eight registers whatever a REX prefix
   says: the engine writes to where a ninth would be, over MXCSR and XMM0 for example. EMMS sets the stack's top, too. */

static void enter_mmx(void *env) {
    AT(u32, env, ENV_X87_TOP) = 0;
    AT(u64, env, ENV_X87_TAGS) = 0;
}

static void *mmx_register(void *env, void *place) {
    u64 offset = (u64)place - (u64)env - ENV_X87_REGISTERS;
    return offset < 2 * X87_REGISTERS_BYTES ? (char *)env + ENV_X87_REGISTERS + offset % X87_REGISTERS_BYTES : place;
}

#define DEFINE_SSSE3(name, ...) \
    void h_##name(void *env, void *to, void *from) { \
        struct vector copy = *(struct vector *)from; \
        enter_mmx(env); \
        e_##name(env, mmx_register(env, to), &copy); \
    }
SSSE3_HELPERS(DEFINE_SSSE3)

void h_helper_palignr_mmx(void *env, void *to, void *from, i32 count) {
    enter_mmx(env);
    e_helper_palignr_mmx(env, mmx_register(env, to), from, count);
}

void h_helper_emms(void *env) {
    e_helper_emms(env);
    AT(u32, env, ENV_X87_TOP) = 0;
}

/* x87. What is stored to a register fills it; a number too large for an integer is the least one; FCOMI and its like clear
   three flags more. */

void h_helper_fmov_STN_ST0(void *env, i32 number) {
    e_helper_fmov_STN_ST0(env, number);
    (&AT(u8, env, ENV_X87_TAGS))[(AT(u32, env, ENV_X87_TOP) + number) & 7] = 0;
}

/* Whether ST0 is 2^bits or more, or no number. */
static int is_beyond(void *env, u32 bits) {
    enum { EXPONENT = 8, BIAS = 0x3fff };
    u32 offset = ENV_X87_REGISTERS + 16 * (AT(u32, env, ENV_X87_TOP) & 7) + EXPONENT;
    return (AT(u16, env, offset) & 0x7fff) >= BIAS + bits;
}

i32 h_helper_fisttl_ST0(void *env) { return is_beyond(env, 31) ? (i32)(1u << 31) : e_helper_fisttl_ST0(env); }

i64 h_helper_fisttll_ST0(void *env) { return is_beyond(env, 63) ? (i64)(1ull << 63) : e_helper_fisttll_ST0(env); }

enum { FLAGS_CLEARED = 0x890 /* OF, SF and AF */ };

void h_helper_fcomi_ST0_FT0(void *env) {
    e_helper_fcomi_ST0_FT0(env);
    AT(u64, env, ENV_CC_SRC) &= ~(u64)FLAGS_CLEARED;
}

void h_helper_fucomi_ST0_FT0(void *env) {
    e_helper_fucomi_ST0_FT0(env);
    AT(u64, env, ENV_CC_SRC) &= ~(u64)FLAGS_CLEARED;
}
