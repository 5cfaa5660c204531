/* When the CPU takes an interrupt (Intel SDM volume 3A, 7.8 and 12.8; AMD APM volume 2, 8.5).

   The engine asks at the start of each block whether to leave it, and then looks at what is requested. So whatever an
   access of the guest makes due is requested when the access has been made, and an instruction that makes such accesses
   ends its block: ports and registers always, the APICs' pages where that was seen once. IF, the shadow behind STI and
   MOV SS, and the blocking of NMIs until IRET are the engine's. */
#include "cpu.h"

enum { HARD = 0x2, POLL = 0x10, NMI = 0x200 }; /* CPU_INTERRUPT_*: x86_cpu_pending_interrupt */
enum { PAGE = 4096 };
#define IOAPIC_BASE 0xfec00000ull

static u32 *requests(struct cpu *c) { return &AT(u32, c->cpu, CPU_INTERRUPT_REQUEST); }

static void request(struct cpu *c, u32 what) {
    __atomic_fetch_or(requests(c), what, __ATOMIC_SEQ_CST);
    __atomic_store_n(&AT(u16, c->cpu, CPU_EXIT_WORD + 2), 0xffff, __ATOMIC_SEQ_CST);
}

/* On the CPU's thread, after an access of the guest: what is due now? */
void look_for_interrupts(struct cpu *c) {
    struct lapic *l = c->lapic;
    if (c->kicked) {
        __atomic_store_n(&c->kicked, 0, __ATOMIC_SEQ_CST);
        __atomic_fetch_and(requests(c), ~POLL, __ATOMIC_SEQ_CST);
        if (c->on_kick && c->on_kick()) request(c, HARD);
    }
    if (!l) return;
    if (l->events & EVENT_NMI) {
        __atomic_fetch_and(&l->events, ~EVENT_NMI, __ATOMIC_SEQ_CST);
        request(c, NMI);
    }
    if (l->events & EVENT_INIT) stop_engine(c);
    if (!(*requests(c) & HARD) && lapic_wants_cpu(l)) request(c, HARD);
}

/* From any thread: something may be due, and Python is to look. The engine clears its requests without regard for other threads,
   so one can be lost in the moment between two blocks. Then the guest's next access sees to it. */
EXPORT void hooks_kick(struct cpu *c) {
    __atomic_store_n(&c->kicked, 1, __ATOMIC_SEQ_CST);
    request(c, POLL);
}

/* The engine calls it between two blocks while anything is requested. */
int h_x86_cpu_exec_interrupt(void *cpu, int what) {
    struct cpu *c = find_cpu((u64)cpu);
    if (c && what & POLL) {
        look_for_interrupts(c);
        what = *requests(c);
    }
    if (c && c->debug & BLOCKS_INTERRUPTS) what &= ~HARD;
    return e_x86_cpu_exec_interrupt(cpu, what);
}

/* The engine takes vector 0 for want of a controller. A negative answer is that of one that has thought better of it. */
void h_do_interrupt_x86_hardirq(void *env, int vector, int hardware) {
    struct cpu *c = cpu_of_env(env);
    if (!vector && c) {
        vector = c->on_acknowledge();
        look_for_interrupts(c);
        if (vector < 0) return;
    }
    if (c) begin_delivery(c, vector, 0);
    e_do_interrupt_x86_hardirq(env, vector, hardware);
    if (c) end_delivery(c);
}

/* ---- the task priority, which CR8 shows ---- */

u64 h_helper_read_crN(void *env, int number) {
    struct cpu *c = number == 8 ? cpu_of_env(env) : 0;
    if (c) return c->lapic ? c->lapic->page[APIC_TPR / 4] >> 4 : AT(u8, env, ENV_TPR);
    TAIL e_helper_read_crN(env, number);
}

void write_task_priority(struct cpu *c, u64 value) {
    c->lapic->page[APIC_TPR / 4] = value << 4;
    look_for_interrupts(c);
}

/* ---- model-specific registers: nonzero if it is one of the APIC's ---- */

int apic_reads_msr(struct cpu *c, u32 index, u64 *value, int *is_refused) {
    int result = c->lapic ? lapic_read_msr(c->lapic, index, value) : NOT_OF_APIC;
    *is_refused = result == REFUSED;
    return result != NOT_OF_APIC;
}

int apic_writes_msr(struct cpu *c, u32 index, u64 value, int *is_refused) {
    int result = c->lapic ? lapic_write_msr(c->lapic, index, value) : NOT_OF_APIC;
    *is_refused = result == REFUSED;
    if (result == DONE) look_for_interrupts(c);
    return result != NOT_OF_APIC;
}

int rdmsr_of_apic(struct cpu *c, uintptr_t caller) {
    u64 value;
    int is_refused;
    if (!apic_reads_msr(c, AT(u32, c->env, ENV_RCX), &value, &is_refused)) return 0;
    if (is_refused) raise(c, VECTOR_GP, 0, caller);
    AT(u64, c->env, ENV_RAX) = (u32)value;
    AT(u64, c->env, ENV_RDX) = value >> 32;
    return 1;
}

int wrmsr_of_apic(struct cpu *c, uintptr_t caller) {
    u64 value = AT(u64, c->env, ENV_RDX) << 32 | AT(u32, c->env, ENV_RAX);
    int is_refused;
    if (!apic_writes_msr(c, AT(u32, c->env, ENV_RCX), value, &is_refused)) return 0;
    if (is_refused) raise(c, VECTOR_GP, 0, caller);
    return 1;
}

/* ---- ports ---- */

u32 read_port(struct cpu *c, u32 port, u32 size) {
    hand_over(c);
    if (port != c->clock_port) c->clock_port = port, c->paused = 0; /* it waits for something else now (control.c) */
    u32 value = c->read_port(port, size);
    look_for_interrupts(c);
    return value;
}

void write_port(struct cpu *c, u32 port, u32 size, u32 value) {
    hand_over(c);
    c->paused = 0;
    c->write_port(port, size, value);
    look_for_interrupts(c);
}

/* ---- accesses to memory that nobody backs: the APIC's page, a flash unit that is being programmed, or Python ---- */

u64 read_mmio(struct cpu *c, u64 gpa, u32 size) {
    struct lapic *l = c->lapic;
    u64 value;
    if (l && size <= 4 && lapic_covers(l, gpa) && !(gpa & (size - 1))) {
        l->accesses++;
        return lapic_read(l, gpa & (PAGE - 1), size);
    }
    if (flash_read(c, gpa, size, &value)) return value;
    hand_over(c);
    c->paused = 0;
    value = c->read_mmio(gpa, size);
    look_for_interrupts(c);
    return value;
}

void write_mmio(struct cpu *c, u64 gpa, u32 size, u64 value) {
    struct lapic *l = c->lapic;
    if (l && lapic_covers(l, gpa) && lapic_write(l, gpa & (PAGE - 1), size, value)) l->accesses++;
    else if (flash_write(c, gpa, size, value)) return;
    else hand_over(c), c->paused = 0, c->write_mmio(gpa, size, value);
    look_for_interrupts(c);
}

/* ---- the ends of blocks ---- */

/* Instructions that were seen to write to an APIC's page, by where they are; 0 is none. */
static u64 *site_of(struct cpu *c, u64 pc) { return &c->sites[pc * 0x9e3779b97f4a7c15 >> 56 & (SITES - 1)]; }

/* An instruction at `pc` is about to be translated: does its block end behind it? */
void end_block_at_site(struct cpu *c, u64 pc) {
    if (*site_of(c, pc) == pc) end_block(c);
}

/* The instruction that is being translated is the last of its block. */
void end_block(struct cpu *c) {
    AT(i32, c->block, BLOCK_LIMIT) = AT(i32, c->block, BLOCK_INSTRUCTIONS);
}

/* The instruction of the guest's that writes is to be the last of its block, for the write may make an interrupt due. If it
   is not, nothing has happened yet: the block is forgotten, and the instruction executed alone. */
void be_last_in_block(struct cpu *c, u64 gpa) {
    uintptr_t at = AT(uintptr_t, c->cpu, CPU_MEM_IO_PC);
    u64 page = gpa & -(u64)PAGE;
    if (!at || !c->lapic || (!lapic_covers(c->lapic, gpa) && page != IOAPIC_BASE)) return;
    uintptr_t *known = &c->last[at >> 4 & (SITES - 1)];
    if (*known == at) return;
    void *context = AT(void *, AT(void *, c->cpu, CPU_UC), UC_TCG), *block = e_tcg_tb_lookup(context, at);
    if (!block) return;
    e_cpu_restore_state((void *)c->cpu, at, 0);
    u64 pc = AT(u64, c->env, ENV_RIP) + AT(u64, block, TB_CS_BASE), *site = site_of(c, pc);
    u64 block_end = AT(u64, block, TB_PC) + AT(u16, block, TB_SIZE), *site_end = &c->site_ends[site - c->sites];
    if (AT(u16, block, TB_COUNT) == 1 || (*site == pc && *site_end == block_end)) {
        *site_end = block_end;
        *known = at;
        return;
    }
    *site = pc;
    e_tb_phys_invalidate(context, block, -1);
    e_cpu_io_recompile((void *)c->cpu, at);
    NEVER_RETURNS;
}
