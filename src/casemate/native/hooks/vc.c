/* #VC: what a SEV-ES guest may not do by itself raises vector 29 before anything happened (AMD APM volume 2, 15.35.5).

   INVD and WBINVD, which the engine translates to nothing, are found in translate.c. */
#include "cpu.h"

#define HIGHEST_EXTENDED 0x80000000u
#define ENCRYPTION 0x8000001fu
#define CR4_OSXSAVE (1u << 18)
#define CPUID_OSXSAVE (1u << 27) /* of leaf 1, ECX */

static struct cpu *raises_vc(void *env, u32 flag) {
    struct cpu *c = cpu_of_env(env);
    return c && c->flags & flag ? c : 0;
}

/* Handing on more arguments than there are costs nothing. */
#define HELPER(name, code) \
    u64 h_##name(void *env, u64 a, u64 b) { \
        struct cpu *c = raises_vc(env, RAISES_VC); \
        if (c) raise(c, VECTOR_VC, code, CALLER); \
        TAIL e_##name(env, a, b); \
    }
VC_HELPERS(HELPER)

void h_helper_set_dr(void *env, int number, u64 value) {
    struct cpu *c = number == 7 ? raises_vc(env, RAISES_VC_DR7) : 0;
    if (c) raise(c, VECTOR_VC, EXIT_WRITE_DR7, CALLER);
    TAIL e_helper_set_dr(env, number, value);
}

u64 h_helper_get_dr(void *env, int number) {
    struct cpu *c = number == 7 ? raises_vc(env, RAISES_VC_DR7) : 0;
    if (c) raise(c, VECTOR_VC, EXIT_READ_DR7, CALLER);
    TAIL e_helper_get_dr(env, number);
}

/* Two leaves say that the guest is encrypted. Others depend on the CPU's state, and are the engine's. */
void h_helper_cpuid(void *env) {
    struct cpu *c = cpu_of_env(env);
    if (c && c->flags & RAISES_VC) raise(c, VECTOR_VC, EXIT_CPUID, CALLER);
    u32 leaf = AT(u32, env, ENV_RAX);
    if (c && c->flags & ANSWERS_CPUID) {
        const u32 *answer = cpuid(c, leaf, AT(u32, env, ENV_RCX));
        u32 enabled = leaf == 1 && AT(u64, env, ENV_CR4) & CR4_OSXSAVE ? CPUID_OSXSAVE : 0;
        AT(u64, env, ENV_RAX) = answer[0], AT(u64, env, ENV_RBX) = answer[1];
        AT(u64, env, ENV_RCX) = (leaf == 1 ? answer[2] & ~CPUID_OSXSAVE : answer[2]) | enabled;
        AT(u64, env, ENV_RDX) = answer[3];
        return;
    }
    if (c && c->on_cpuid && (leaf == HIGHEST_EXTENDED || leaf == ENCRYPTION)) {
        const u32 *answer = cpuid(c, leaf, 0);
        AT(u64, env, ENV_RAX) = answer[0], AT(u64, env, ENV_RBX) = answer[1];
        AT(u64, env, ENV_RCX) = answer[2], AT(u64, env, ENV_RDX) = answer[3];
        return;
    }
    TAIL e_helper_cpuid(env);
}

const u32 *cpuid(struct cpu *c, u32 leaf, u32 index) {
    struct leaf *l = &c->leaves[(leaf * 31 + index * 7 + (leaf >> 27)) & (CPUID_LEAVES - 1)];
    if (!l->known || l->leaf != leaf || l->index != index) {
        c->on_cpuid(leaf, index, &l->eax);
        l->leaf = leaf, l->index = index, l->known = 1;
    }
    return &l->eax;
}
