/* PCMPESTRI and PCMPESTRM with lengths that the engine takes for negative ones: it reads far outside of its registers for
   them, which takes this process down (Intel SDM volume 2, PCMPESTRI: the absolute value, 16 bytes at most). */
#include "cpu.h"

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
