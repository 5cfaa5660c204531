/* RDMSR and WRMSR (host/model/cpu/msr.py): no access to a register of the model needs Python. */
#include "cpu.h"

enum { PARAVIRTUAL = 0x4b564d00 };

static int range_of(u32 index) {
    return index < MSRS ? 0 : index - 0xc0000000u < MSRS ? 1 : index - 0xc0010000u < MSRS ? 2 : -1;
}

static u8 policy_of(struct cpu *c, u32 index) {
    int range = range_of(index);
    if (range < 0 && c->on_msr && index - PARAVIRTUAL < 8) return MSR_ASKED | (c->msrs->policy_elsewhere & MSR_RAISES);
    return range < 0 ? (u8)c->msrs->policy_elsewhere : c->msrs->policy[range][index & (MSRS - 1)];
}

static u64 *value_of(struct cpu *c, u32 index) { return &c->msrs->value[range_of(index)][index & (MSRS - 1)]; }

/* The list has room for those that a guest asks for, not for one that tries all. */
static void count_unknown(struct msrs *m, u32 index) {
    for (int i = 0; i < UNKNOWN_MSRS; i++) {
        if (!m->unknown[i].count) m->unknown[i].index = index;
        if (m->unknown[i].index == index) {
            m->unknown[i].count++;
            return;
        }
    }
    m->others++;
}

/* Values that the processor refuses, and the engine takes (Intel SDM volume 4; AMD APM volume 2, 3.1.7 and 7.8). */

enum { MSR_SYSENTER_ESP = 0x175, MSR_SYSENTER_EIP, MSR_PAT = 0x277 };
#define MSR_EFER 0xc0000080u
#define MSR_LSTAR 0xc0000082u
#define MSR_CSTAR 0xc0000083u
#define MSR_FS_BASE 0xc0000100u
#define MSR_KERNEL_GS_BASE 0xc0000102u
enum { EFER_LME = 1 << 8, HIGHEST_TYPE = 7 };

static int is_refused_efer(struct cpu *c, void *env, u64 value) {
    return value & c->efer_reserved || (AT(u64, env, ENV_CR0) >> 31 & 1 && (AT(u64, env, ENV_EFER) ^ value) & EFER_LME);
}

static int is_refused_pat(u64 value) {
    for (; value; value >>= 8)
        if ((value & 0xff) > HIGHEST_TYPE || (value & 0xfe) == 2) return 1;
    return 0;
}

static int is_refused(struct cpu *c, void *env, u32 index, u64 value) {
    switch (index) {
    case MSR_EFER: return is_refused_efer(c, env, value);
    case MSR_PAT: return is_refused_pat(value);
    case MSR_SYSENTER_ESP: case MSR_SYSENTER_EIP: case MSR_LSTAR: case MSR_CSTAR: return !is_canonical(env, value);
    }
    return index >= MSR_FS_BASE && index <= MSR_KERNEL_GS_BASE && !is_canonical(env, value);
}

void h_helper_rdmsr(void *env) {
    struct cpu *c = cpu_of_env(env);
    if (c) {
        u32 index = AT(u32, env, ENV_RCX);
        u8 policy = policy_of(c, index);
        if (policy & MSR_RAISES) raise(c, VECTOR_VC, EXIT_MSR, CALLER);
        if (policy == MSR_ASKED) {
            u64 value = 0;
            if (c->on_msr(index, 0, &value)) raise(c, VECTOR_GP, 0, CALLER);
            AT(u64, env, ENV_RAX) = (u32)value, AT(u64, env, ENV_RDX) = value >> 32;
            return;
        }
        if (rdmsr_of_apic(c, CALLER)) return;
        if (policy >= MSR_CONSTANT) {
            AT(u64, env, ENV_RAX) = (u32)*value_of(c, index);
            AT(u64, env, ENV_RDX) = *value_of(c, index) >> 32;
            return;
        }
        if (policy == MSR_UNKNOWN) count_unknown(c->msrs, index);
    }
    TAIL e_helper_rdmsr(env);
}

void h_helper_wrmsr(void *env) {
    struct cpu *c = cpu_of_env(env);
    if (c) {
        u32 index = AT(u32, env, ENV_RCX);
        u8 policy = policy_of(c, index);
        if (policy & MSR_RAISES) raise(c, VECTOR_VC, EXIT_MSR, CALLER);
        u64 value = AT(u64, env, ENV_RDX) << 32 | AT(u32, env, ENV_RAX);
        if (policy == MSR_ASKED) {
            if (c->on_msr(index, 1, &value)) raise(c, VECTOR_GP, 0, CALLER);
            return;
        }
        if (wrmsr_of_apic(c, CALLER)) return;
        if (policy == MSR_PLAIN) *value_of(c, index) = value;
        if (policy >= MSR_CONSTANT) return;
        if ((index == MSR_SYSENTER_ESP || index == MSR_SYSENTER_EIP) && is_amd(env)) { /* they are of 32 bits there */
            AT(u64, env, index == MSR_SYSENTER_ESP ? ENV_SYSENTER_ESP : ENV_SYSENTER_EIP) = (u32)value;
            return;
        }
        if (is_refused(c, env, index, value)) raise(c, VECTOR_GP, 0, CALLER);
        if (index == MSR_EFER) forget_walks(c); /* its NXE */
        if (policy == MSR_UNKNOWN) count_unknown(c->msrs, index);
    }
    TAIL e_helper_wrmsr(env);
}

/* What the guest asks its host for by GHCB. Of the engine's registers it has another one, which nobody looks at. */

u64 read_msr(struct cpu *c, u32 index) {
    u64 value = 0;
    int is_refused;
    if (apic_reads_msr(c, index, &value, &is_refused)) return value;
    u8 policy = policy_of(c, index) & ~MSR_RAISES;
    if (policy == MSR_ASKED) return c->on_msr(index, 0, &value) ? 0 : value;
    if (policy != MSR_UNKNOWN) return *value_of(c, index);
    count_unknown(c->msrs, index);
    return 0;
}

void write_msr(struct cpu *c, u32 index, u64 value) {
    int is_refused;
    if (apic_writes_msr(c, index, value, &is_refused)) return;
    u8 policy = policy_of(c, index) & ~MSR_RAISES;
    if (policy == MSR_ASKED) c->on_msr(index, 1, &value);
    if (policy == MSR_PLAIN || policy == MSR_ENGINE) *value_of(c, index) = value;
    if (policy == MSR_UNKNOWN) count_unknown(c->msrs, index);
}
