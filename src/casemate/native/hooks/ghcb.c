/* VMGEXIT of a SEV-ES or SNP guest (AMD 56421): ports, MMIO, registers and CPUID. All else is Python's (host/model/sev/ghcb.py),
   and so is every request that is not plain: nothing has happened then. */
#include "cpu.h"

enum { RAX = 0x1f8, RBX = 0x318, RCX = 0x308, RDX = 0x310, CODE = 0x390, INFO1 = 0x398, INFO2 = 0x3a0, SCRATCH = 0x3a8 };
enum { VALID = 0x3f0, SHARED = 0x800, SHARED_BYTES = 0x7f0, USAGE = 0xffc, PAGE = 0x1000 };
enum { IOIO_IN = 1, IOIO_STRING = 4, MSR_IS_WRITE = 1 };
enum { CPUID_REQUEST = 4, CPUID_RESPONSE = 5, KIND_OF_REQUEST = 0xfff, MSR_GHCB = 0xc0010130 };
#define MMIO_READ 0x80000001u
#define MMIO_WRITE 0x80000002u
#define ADDRESS(x) ((x) & ~(1ull << C_BIT))

static int has(u8 *page, u32 field) { return page[VALID + (field >> 6)] >> (field >> 3 & 7) & 1; }

static void put(u8 *page, u32 field, u64 value) {
    AT(u64, page, field) = value;
    page[VALID + (field >> 6)] |= 1 << (field >> 3 & 7);
}

/* Success, with no field valid but those that follow. */
static int answered(struct cpu *c, u8 *page, int kind) {
    AT(u64, page, VALID) = AT(u64, page, VALID + 8) = 0;
    put(page, INFO1, 0), put(page, INFO2, 0);
    c->served[kind]++;
    return 1;
}

static u64 load(const u8 *at, u32 size) {
    return size == 1 ? *at : size == 2 ? *(u16 *)at : size == 4 ? *(u32 *)at : *(u64 *)at;
}

static void store(u8 *at, u32 size, u64 value) {
    if (size == 1) *at = value;
    else if (size == 2) *(u16 *)at = value;
    else if (size == 4) *(u32 *)at = value;
    else *(u64 *)at = value;
}

static int serve_port(struct cpu *c, u8 *page, u64 info) {
    u32 size = info >> 4 & 7, port = info >> 16 & 0xffff, mask = size == 4 ? ~0u : (1u << 8 * size) - 1;
    if (info & IOIO_STRING || (size != 1 && size != 2 && size != 4)) return 0;
    if (info & IOIO_IN) {
        u32 value = read_port(c, port, size) & mask;
        answered(c, page, SERVED_IOIO);
        put(page, RAX, value);
        return 1;
    }
    if (!has(page, RAX)) return 0;
    write_port(c, port, size, AT(u32, page, RAX) & mask);
    return answered(c, page, SERVED_IOIO);
}

static int serve_cpuid(struct cpu *c, u8 *page) {
    if (!has(page, RAX) || !has(page, RCX)) return 0;
    const u32 *answer = cpuid(c, AT(u32, page, RAX), AT(u32, page, RCX));
    answered(c, page, SERVED_CPUID);
    put(page, RAX, answer[0]), put(page, RBX, answer[1]), put(page, RCX, answer[2]), put(page, RDX, answer[3]);
    return 1;
}

static int serve_msr(struct cpu *c, u8 *page, u64 info) {
    u32 index = AT(u32, page, RCX);
    if (!has(page, RCX)) return 0;
    if (info & MSR_IS_WRITE) {
        if (!has(page, RAX) || !has(page, RDX)) return 0;
        write_msr(c, index, AT(u64, page, RDX) << 32 | AT(u32, page, RAX));
        return answered(c, page, SERVED_MSR);
    }
    u64 value = read_msr(c, index);
    answered(c, page, SERVED_MSR);
    put(page, RAX, (u32)value), put(page, RDX, value >> 32);
    return 1;
}

static int serve_mmio(struct cpu *c, u8 *page, u64 gpa, u64 size, int is_write) {
    u64 at = ADDRESS(AT(u64, page, SCRATCH)) - ADDRESS(c->ghcb_gpa) - SHARED;
    if (!has(page, SCRATCH) || (size != 1 && size != 2 && size != 4 && size != 8)) return 0;
    if (at > SHARED_BYTES - size) return 0; /* it may be anywhere, and is nearly always here */
    u8 *data = page + SHARED + at;
    gpa = ADDRESS(gpa);
    if (is_write) {
        write_mmio(c, gpa, size, load(data, size));
        return answered(c, page, SERVED_MMIO_WRITE);
    }
    store(data, size, read_mmio(c, gpa, size));
    return answered(c, page, SERVED_MMIO_READ);
}

static int serve_page(struct cpu *c, u8 *page) {
    if (AT(u32, page, USAGE) || !has(page, CODE) || !has(page, INFO1) || !has(page, INFO2)) return 0;
    u64 code = AT(u64, page, CODE), info1 = AT(u64, page, INFO1), info2 = AT(u64, page, INFO2);
    switch (code) {
    case EXIT_IOIO: return serve_port(c, page, info1);
    case EXIT_CPUID: return serve_cpuid(c, page);
    case EXIT_MSR: return serve_msr(c, page, info1);
    case MMIO_READ: case MMIO_WRITE: return serve_mmio(c, page, info1, info2, code == MMIO_WRITE);
    }
    return 0;
}

/* Nonzero if the request was served; RIP is the caller's. */
int serve_ghcb(struct cpu *c) {
    u64 ghcb = read_msr(c, MSR_GHCB);
    if ((ghcb & KIND_OF_REQUEST) == CPUID_REQUEST) {
        u32 which = ghcb >> 30 & 3;
        write_msr(c, MSR_GHCB, (u64)cpuid(c, ghcb >> 32, 0)[which] << 32 | which << 30 | CPUID_RESPONSE);
        c->served[SERVED_MSR_CPUID]++;
        return 1;
    }
    if (ghcb & KIND_OF_REQUEST) return 0;
    /* An SNP guest shares its GHCB, so it refuses to be private and nothing else. */
    if (c->rights && (ADDRESS(ghcb) >> 12 >= PAGES || c->rights[ADDRESS(ghcb) >> 12] != REFUSE_PRIVATE)) return 0;
    if (ghcb != c->ghcb_gpa || !c->ghcb) {
        c->ghcb = host_address(c, ADDRESS(ghcb), PAGE);
        c->ghcb_gpa = ghcb;
    }
    return c->ghcb && serve_page(c, c->ghcb);
}
