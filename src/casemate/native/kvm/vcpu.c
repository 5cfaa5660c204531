/* vCPUs. The guest runs on a stack of its own in the thread that calls KVM_RUN: an exit switches stacks, and so does the
   next KVM_RUN. No thread waits for another, and no Python runs on the way (docs/decisions/0008-coroutine.md). */
#include "kvm.h"
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { STACK_BYTES = 16 << 20, SAVED_REGISTERS = 6 };

_Thread_local struct vcpu *current_vcpu;
void kvm_wake(struct vcpu *v);

/* Keeps what the ABI says a function keeps, puts the stack pointer into *save, and goes on where `to` stands. */
__asm__(".text\n.globl switch_stack\n.hidden switch_stack\n.type switch_stack,@function\nswitch_stack:\n"
        " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        " mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
        " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
HIDDEN void switch_stack(void **save, void *to);
__asm__(".symver pthread_getspecific,pthread_getspecific@GLIBC_2.2.5\n.symver pthread_setspecific,pthread_setspecific@GLIBC_2.2.5\n");

/* The coroutine goes on, in this thread. */
static void enter(struct vcpu *v) {
    void *ours = pthread_getspecific(python_state), *executed = v->exchange(v->executing);
    pthread_setspecific(python_state, v->python);
    switch_stack(&v->caller, v->here);
    v->python = pthread_getspecific(python_state);
    pthread_setspecific(python_state, ours);
    v->executing = v->exchange(executed);
}

/* ---- one thread changes what the guest runs on, while another one is in KVM_RUN ---- */

static void sleep_on(volatile u32 *word, u32 value) {
    struct timespec limit = {0, 1000000};
    syscall(SYS_futex, word, FUTEX_WAIT, value, &limit, 0, 0);
}

static void wake_from(volatile u32 *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, 0, 0, 0); }

/* ---- turns: of the vCPUs of a VM that are in KVM_RUN one executes, for an engine's locked instructions are not atomic for
   another one. Who comes to execute takes a ticket, and waits until its number is due. ---- */

static void tell_engines(struct inside *i) {
    if (i->others_wait) *i->others_wait = (u32)(i->tickets - i->turn) > 1;
}

static void take_turn(struct vcpu *v) {
    struct inside *i = v->inside;
    v->ticket = __atomic_fetch_add(&i->tickets, 1, __ATOMIC_SEQ_CST);
    for (u32 turn; (turn = __atomic_load_n(&i->turn, __ATOMIC_SEQ_CST)) != v->ticket;) {
        tell_engines(i);
        syscall(SYS_futex, &i->turn, FUTEX_WAIT_BITSET, turn, 0, 0, 1u << (v->ticket & 31));
    }
    v->has_turn = 1;
    tell_engines(i);
}

static void end_turn(struct vcpu *v) {
    struct inside *i = v->inside;
    if (!v->has_turn) return;
    v->has_turn = 0;
    u32 next = __atomic_add_fetch(&i->turn, 1, __ATOMIC_SEQ_CST);
    if (next != __atomic_load_n(&i->tickets, __ATOMIC_SEQ_CST)) syscall(SYS_futex, &i->turn, FUTEX_WAKE_BITSET, INT32_MAX, 0, 0, 1u << (next & 31));
}

/* Let those who wait execute first. */
EXPORT void kvm_pass_turn(struct vcpu *v) {
    if (v->inside->tickets - v->inside->turn <= 1) return;
    end_turn(v);
    take_turn(v);
}

/* No instruction of the guest is executed from the return of this on until kvm_release. */
EXPORT void kvm_hold(struct vcpu *v) {
    __atomic_store_n(&v->held, 1, __ATOMIC_SEQ_CST);
    while (v->in_run && !v->parked && current_vcpu != v) {
        if (v->engine) v->stop_engine(v->engine);
        kvm_wake(v);
        sleep_on(&v->held, 1);
    }
}

EXPORT void kvm_release(struct vcpu *v) {
    __atomic_store_n(&v->held, 0, __ATOMIC_SEQ_CST);
    wake_from(&v->held);
}

/* Between two runs of the engine. */
EXPORT void kvm_park(struct vcpu *v) {
    end_turn(v);
    v->parked = 1;
    wake_from(&v->held);
    while (v->held) sleep_on(&v->held, 1);
    v->parked = 0;
    take_turn(v);
}

static void enter_run(struct vcpu *v) {
    for (;;) {
        __atomic_store_n(&v->in_run, 1, __ATOMIC_SEQ_CST);
        if (!v->held) return;
        v->in_run = 0;
        sleep_on(&v->held, 1);
    }
}

EXPORT u64 kvm_vcpu_size(void) { return sizeof(struct vcpu); }
EXPORT u64 kvm_inside_size(void) { return sizeof(struct inside); }
EXPORT u64 kvm_stack_size(void) { return STACK_BYTES; }

static u8 *ring_of(struct vcpu *v) { return v->run + COALESCED_PAGE * PAGE; }

EXPORT struct vcpu *kvm_new_vcpu(int *fd, struct inside *inside) {
    struct vcpu *v = calloc(1, sizeof *v);
    if (!v) return 0;
    v->inside = inside, v->address_mask = ~0ull;
    *fd = descriptor(VCPU, (u64)v, RUN_BYTES, "casemate-vcpu");
    v->run = *fd < 0 ? MAP_FAILED : mmap(0, RUN_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    v->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    v->stack = mmap(0, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int stats = syscall(SYS_memfd_create, "casemate-stats", 1 /* MFD_CLOEXEC */);
    u8 *page = stats < 0 || ftruncate(stats, PAGE) ? MAP_FAILED : mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, stats, 0);
    if (v->run == MAP_FAILED || v->wake_fd < 0 || v->stack == MAP_FAILED || page == MAP_FAILED) return 0;
    v->stats_fd = stats, v->counts = (u64 *)(page + STATS_DATA);
    if (!inside->ring) inside->ring = ring_of(v);
    *(u64 *)(v->run + RUN_APIC_BASE) = APIC_BASE;
    return v;
}

EXPORT void kvm_free_vcpu(struct vcpu *v) {
    if (current_vcpu == v) current_vcpu = 0;
    if (v->inside->ring == ring_of(v)) v->inside->ring = 0;
    kvm_watch_vcpu(v, 0);
    munmap(v->run, RUN_BYTES);
    munmap(v->stack, STACK_BYTES);
    munmap((u8 *)v->counts - STATS_DATA, PAGE);
    close(v->wake_fd);
    close(v->stats_fd);
    free(v);
}

static void loop(void) {
    struct vcpu *v = current_vcpu;
    python_loop(v);
    switch_stack(&v->here, v->caller);
    abort(); /* nobody comes back */
}

/* Python keeps frames on the coroutine's stack: they must be gone, in their order, before it is. No Python of this thread
   may be under way. */
void end_vcpu(struct vcpu *v) {
    if (!v->started || v->must_end) return;
    v->must_end = v->abandoned = v->stop_wanted = 1;
    current_vcpu = v;
    enter(v);
}

/* Controllers in the monitor want to know whether the guest would take an interrupt now. */
static void show_readiness(struct vcpu *v) {
    if (!v->eflags) return;
    v->run[RUN_IF] = *v->eflags >> EFLAGS_IF & 1;
    v->run[RUN_READY] = v->run[RUN_IF] && !v->queued;
}

/* The sum first: whoever reads meanwhile sees at least as many exits as exits of each kind. */
static void count_exit(struct vcpu *v, int kind) {
    v->counts[COUNT_EXITS]++;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    v->counts[kind]++;
}

static void leave(struct vcpu *v, long result) {
    v->result = result;
    show_readiness(v);
    note_code(v);
    end_turn(v);
    v->in_run = 0;
    if (v->held) wake_from(&v->held);
    switch_stack(&v->here, v->caller);
    if (was_code_written(v)) {
        v->is_stale = 1;
        if (v->in_access) v->stop_engine(v->engine); /* at the end of this instruction's block */
    }
}

/* KVM_RUN returns; called by Python, on the coroutine's stack. */
EXPORT void kvm_leave(struct vcpu *v, u32 reason, long result) {
    *(u32 *)(v->run + 8) = reason;
    count_exit(v, result == -EINTR ? COUNT_INTERRUPTED : COUNT_OTHER);
    leave(v, result);
}

/* KVM_RUN returns as it was interrupted, whatever it reported before stays. */
EXPORT void kvm_pause(struct vcpu *v) {
    v->counts[COUNT_EXITS]++;
    leave(v, -EINTR);
}

/* A new state came while an access waited: the engine is to be left, before the access where that can be. */
static u64 give_up(struct vcpu *v, u64 kind) {
    v->in_access = 0, v->stop_wanted = 1;
    if (kind == KVM_EXIT_IO) *v->undo_port = 1;
    v->stop_engine(v->engine);
    return ~0ull;
}

/* What was interrupted comes first. */
static void yield_to_signals(struct vcpu *v) {
    v->in_access = 1;
    while (v->stop_wanted && !v->abandoned) {
        *(u32 *)(v->run + 8) = KVM_EXIT_INTR;
        count_exit(v, COUNT_INTERRUPTED);
        leave(v, -EINTR);
    }
}

static u64 answer_of(struct vcpu *v, u64 kind) {
    u64 value = 0;
    u8 *details = v->run + RUN_UNION;
    if (kind == KVM_EXIT_IO) memcpy(&value, v->run + PAGE, details[1] & 7);
    else memcpy(&value, details + 8, *(u32 *)(details + 16) & 15);
    return value;
}

/* One access of the guest, whose details are in kvm_run, and its answer. */
static u64 ask_user(struct vcpu *v, u64 kind) {
    *(u32 *)(v->run + 8) = kind;
    count_exit(v, kind == KVM_EXIT_IO ? COUNT_IO : COUNT_MMIO);
    v->pending = kind, v->latched = 0;
    leave(v, 0);
    v->pending = 0;
    if (!v->latched) v->answer = answer_of(v, kind);
    if (v->abandoned) {
        v->replay = kind;
        return give_up(v, kind);
    }
    v->in_access = 0;
    return v->answer;
}

static int is_replayed(struct vcpu *v, u64 kind) {
    int is_known = v->replay == kind;
    v->replay = 0;
    return is_known;
}

EXPORT u32 kvm_exit_port(struct vcpu *v, int out, u32 port, u32 size, u32 value) {
    if (is_replayed(v, KVM_EXIT_IO)) return v->answer;
    yield_to_signals(v);
    if (v->abandoned) return give_up(v, KVM_EXIT_IO);
    u8 *details = v->run + RUN_UNION;
    details[0] = out, details[1] = size;
    *(u16 *)(details + 2) = port, *(u32 *)(details + 4) = 1, *(u64 *)(details + 8) = PAGE;
    if (out) memcpy(v->run + PAGE, &value, size & 7);
    return ask_user(v, KVM_EXIT_IO);
}

EXPORT u64 kvm_exit_mmio(struct vcpu *v, int write, u64 gpa, u32 size, u64 value) {
    if (is_replayed(v, KVM_EXIT_MMIO)) return v->answer;
    yield_to_signals(v);
    if (v->abandoned) return give_up(v, KVM_EXIT_MMIO);
    u8 *details = v->run + RUN_UNION;
    *(u64 *)details = gpa;
    *(u64 *)(details + 8) = 0;
    if (write) memcpy(details + 8, &value, size);
    *(u32 *)(details + 16) = size, details[20] = write;
    return ask_user(v, KVM_EXIT_MMIO);
}

/* Callbacks of the engine's hooks, in place of Python's. The engine also calls them when it looks up addresses for an ioctl:
   then no guest waits for an answer. */
static int is_executing(struct vcpu *v) { return v && v->in_run; }

static int is_port_inside(struct vcpu *v, u32 port) {
    int is_inside = v->inside->ports[port >> 3 & 8191] >> (port & 7) & 1;
    v->counts[COUNT_INSIDE] += is_inside;
    return is_inside;
}

static int is_inside(struct vcpu *v, u64 gpa) {
    for (u64 i = 0; i < v->inside->count; i++)
        if (gpa >= v->inside->mmio[i].start && gpa < v->inside->mmio[i].end) {
            v->counts[COUNT_INSIDE]++;
            return 1;
        }
    return 0;
}

/* A write that the monitor hears of later: whether there was room for it in the ring. */
static int is_coalesced(struct vcpu *v, u64 address, u32 size, u64 value, u64 is_pio) {
    struct ring {
        u32 first, last;
        struct { u64 address; u32 size, is_pio; u64 data; } writes[(PAGE - 8) / 24];
    } *ring = (void *)v->inside->ring;
    enum { ROOM = sizeof ring->writes / sizeof *ring->writes };
    for (u64 i = 0; ring && i < v->inside->zone_count; i++) {
        struct zone *zone = &v->inside->zones[i];
        if (zone->is_pio != is_pio || address < zone->start || address + size > zone->end) continue;
        u32 last = ring->last;
        if (last >= ROOM || (last + 1) % ROOM == ring->first) return 0;
        ring->writes[last].address = address, ring->writes[last].size = size;
        ring->writes[last].is_pio = is_pio, ring->writes[last].data = value;
        __atomic_store_n(&ring->last, (last + 1) % ROOM, __ATOMIC_RELEASE);
        return 1;
    }
    return 0;
}

EXPORT u32 kvm_read_port(u32 port, u32 size) {
    struct vcpu *v = current_vcpu;
    return is_port_inside(v, port) ? v->read_port(port, size) : kvm_exit_port(v, 0, port, size, 0);
}

EXPORT void kvm_write_port(u32 port, u32 size, u32 value) {
    struct vcpu *v = current_vcpu;
    if (is_port_inside(v, port)) v->write_port(port, size, value);
    else if (!is_coalesced(v, port, size, value, 1)) kvm_exit_port(v, 1, port, size, value);
}

EXPORT u64 kvm_read_mmio(u64 gpa, u32 size) {
    struct vcpu *v = current_vcpu;
    if (!is_executing(v)) return ~0ull;
    gpa &= v->address_mask;
    return is_inside(v, gpa) ? v->read_mmio(gpa, size) : kvm_exit_mmio(v, 0, gpa, size, 0);
}

EXPORT void kvm_write_mmio(u64 gpa, u32 size, u64 value) {
    struct vcpu *v = current_vcpu;
    if (!is_executing(v)) return;
    gpa &= v->address_mask;
    if (is_inside(v, gpa)) v->write_mmio(gpa, size, value);
    else if (!is_coalesced(v, gpa, size, value, 0)) kvm_exit_mmio(v, 1, gpa, size, value);
}

/* Waiting in HLT. */

EXPORT void kvm_wait(struct vcpu *v, int64_t nanoseconds) {
    struct pollfd wake = {v->wake_fd, POLLIN, 0};
    struct timespec limit = {nanoseconds / 1000000000, nanoseconds % 1000000000};
    end_turn(v);
    ppoll(&wake, 1, &limit, 0);
    u64 count;
    if (read(v->wake_fd, &count, sizeof count) < 0) count = 0;
    take_turn(v);
}

EXPORT void kvm_wake(struct vcpu *v) {
    u64 one = 1;
    if (write(v->wake_fd, &one, sizeof one) < 0) return;
}

/* In signal handlers. */
void interrupt_vcpu(void) {
    struct vcpu *v = current_vcpu;
    if (!v || !v->in_run) return;
    int saved = errno;
    v->stop_wanted = 1;
    if (v->engine) v->stop_engine(v->engine);
    kvm_wake(v);
    errno = saved;
}

int is_in_run(void) { return current_vcpu && current_vcpu->in_run; }

/* Another thread called pthread_cancel for the one that runs this vCPU, or is about to. */
void cancel_vcpu(struct vcpu *v, pthread_t thread) {
    if (v->runner != (u64)thread) return;
    __atomic_store_n(&v->cancelled, 1, __ATOMIC_SEQ_CST);
    v->stop_wanted = 1;
    if (v->engine) v->stop_engine(v->engine);
    kvm_wake(v);
}

static void start(struct vcpu *v) {
    void **top = (void **)((char *)v->stack + STACK_BYTES - 64);
    *--top = 0; /* nobody called */
    *--top = (void *)loop;
    for (int i = 0; i < SAVED_REGISTERS; i++) *--top = 0;
    v->here = top, v->started = 1;
}

/* kvm_run.immediate_exit: the access that was reported is complete, and nothing else happens; the exit reason stays. */
static int return_at_once(struct vcpu *v) {
    if (v->pending && !v->latched) v->answer = answer_of(v, v->pending), v->latched = 1;
    v->counts[COUNT_IMMEDIATE]++;
    show_readiness(v); /* KVM_INTERRUPT may have given a vector meanwhile */
    errno = EINTR;
    return -1;
}

/* IN or OUT was reported and answered: the instruction happens, and the guest stands behind it. From the monitor's side. */
EXPORT void kvm_complete(struct vcpu *v) {
    struct vcpu *before = current_vcpu;
    current_vcpu = v;
    enter_run(v);
    take_turn(v);
    v->completing = v->abandoned = 1;
    enter(v);
    v->in_run = 0;
    current_vcpu = before;
}

static int run(struct vcpu *v) {
    sigset_t mask, before;
    if (v->run[1]) return return_at_once(v);
    v->stop_wanted = 0;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    enter_run(v);
    if (v->cancelled) v->stop_wanted = 1;
    if (v->has_mask) {
        memset(&mask, 0, sizeof mask);
        memcpy(&mask, &v->signal_mask, sizeof v->signal_mask);
        sigprocmask(SIG_SETMASK, &mask, &before);
    }
    if (v->run[1]) v->stop_wanted = 1;
    if (v->eflags && v->run[RUN_WINDOW_WANTED] && v->in_access) v->stop_engine(v->engine);
    if (!v->started) start(v);
    take_turn(v);
    enter(v);
    v->in_run = 0;
    if (v->has_mask) sigprocmask(SIG_SETMASK, &before, 0);
    if (v->result >= 0) return v->result;
    errno = -v->result;
    return -1;
}

static int run_uncancelled(struct vcpu *v) {
    static _Thread_local u64 thread;
    if (!thread) thread = syscall(SYS_gettid);
    current_vcpu = v, v->thread = thread;
    v->counts[COUNT_RUNS]++;
    errno = python_before_run ? python_before_run(v) : 0;
    int result = errno ? -1 : run(v), saved = errno;
    if (python_after_run) python_after_run(v, result < 0 ? -saved : result);
    current_vcpu = 0; /* another thread may run it next */
    errno = saved;
    return result;
}

/* A thread may be cancelled, or ended by a handler, behind KVM_RUN only. */
int run_vcpu(struct vcpu *v) {
    struct cancellation before = forbid_cancel();
    if (v->runner != (u64)pthread_self()) {
        v->runner = (u64)pthread_self();
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        allow_cancel(before); /* pthread_cancel that did not see this yet */
        forbid_cancel();
    }
    int result = run_uncancelled(v), saved = errno;
    v->cancelled = 0;
    allow_cancel(before);
    handle_kept_signals();
    errno = saved;
    return result;
}
