/* #VC: what a SEV-ES guest may not do by itself raises vector 29 before anything happened (AMD APM volume 2, 15.35.5).

   INVD and WBINVD, which the engine translates to nothing, are found in translate.c. */
#include "cpu.h"

enum { CR4_OSXSAVE = 1 << 18, CR4_PKE = 1 << 22, XCR0_PKRU = 1 << 9 };
#define OSXSAVE (1u << 27) /* of leaf 1, ECX */
#define APIC (1u << 9)     /* of leaf 1, EDX, and of AMD's leaf that repeats it */
#define OSPKE (1u << 4)    /* of leaf 7, ECX */
enum { XSAVE_LEAF = 0xd, LEGACY_AREA = 0x240, WITH_PKRU = 0xa88 };

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

/* DR7.GD of a debugger of the host's. */
static void guard_debug_registers(void *env, uintptr_t caller) {
    struct cpu *c = cpu_of_env(env);
    if (c && c->debug & DEBUGS_REGISTERS) raise(c, AT_DEBUG_REGISTER, 0, caller);
}

void h_helper_set_dr(void *env, int number, u64 value) {
    guard_debug_registers(env, CALLER);
    struct cpu *c = number == 7 ? raises_vc(env, RAISES_VC_DR7) : 0;
    if (c) raise(c, VECTOR_VC, EXIT_WRITE_DR7, CALLER);
    TAIL e_helper_set_dr(env, number, value);
}

u64 h_helper_get_dr(void *env, int number) {
    guard_debug_registers(env, CALLER);
    struct cpu *c = number == 7 ? raises_vc(env, RAISES_VC_DR7) : 0;
    if (c) raise(c, VECTOR_VC, EXIT_READ_DR7, CALLER);
    TAIL e_helper_get_dr(env, number);
}

/* Some leaves show the CPU's state, too. */
void h_helper_cpuid(void *env) {
    struct cpu *c = cpu_of_env(env);
    if (c && c->flags & RAISES_VC) raise(c, VECTOR_VC, EXIT_CPUID, CALLER);
    if (c && c->on_cpuid) {
        u32 leaf = AT(u32, env, ENV_RAX), index = AT(u32, env, ENV_RCX), enabled = AT(u32, env, ENV_CR4);
        const u32 *answer = cpuid(c, leaf, index);
        AT(u64, env, ENV_RAX) = answer[0], AT(u64, env, ENV_RBX) = answer[1];
        AT(u64, env, ENV_RCX) = answer[2], AT(u64, env, ENV_RDX) = answer[3];
        if (leaf == 1) AT(u64, env, ENV_RCX) = (answer[2] & ~OSXSAVE) | (enabled & CR4_OSXSAVE ? OSXSAVE : 0);
        if ((leaf == 1 || leaf == 0x80000001) && c->lapic && !lapic_is_on(c->lapic)) AT(u64, env, ENV_RDX) &= ~(u64)APIC;
        if (leaf == 7 && !index) AT(u64, env, ENV_RCX) = (answer[2] & ~OSPKE) | (enabled & CR4_PKE ? OSPKE : 0);
        if (leaf == XSAVE_LEAF && !index && answer[1])
            AT(u64, env, ENV_RBX) = AT(u64, env, ENV_XCR0) & XCR0_PKRU ? WITH_PKRU : LEGACY_AREA;
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
