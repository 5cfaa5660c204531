/* A /dev/kvm inside the process that opens it (docs/design/user-space-kvm.md).

   The library is preloaded into a virtual machine monitor. It hands out descriptors for /dev/kvm and /dev/sev, starts
   Python when the first of them is opened, and has casemate.userkvm answer their ioctls. KVM_RUN and exits for ports and
   MMIO need no Python. */
#pragma once
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stddef.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define HIDDEN __attribute__((visibility("hidden")))
#define EXPORT __attribute__((visibility("default"), used))

/* What a descriptor is of. */
enum kind { NO_KIND, SYSTEM, VM, VCPU, SEV, GUEST_MEMFD };

enum { PAGE = 4096, RUN_BYTES = 3 * PAGE, RUN_UNION = 32, RANGES = 256, ZONES = 64 };
enum { COALESCED_PAGE = 2, LINES = 24 };
enum { RUN_WINDOW_WANTED = 0, RUN_READY = 12, RUN_IF = 13, EFLAGS_IF = 9 }; /* in kvm_run; a bit */
enum { RUN_APIC_BASE = 24, APIC_BASE = 0xfee00900 }; /* in kvm_run, and what it always is */
enum { KVM_EXIT_UNKNOWN = 0, KVM_EXIT_IO = 2, KVM_EXIT_MMIO = 6, KVM_EXIT_INTR = 10 };

/* Counters of one vCPU, by why KVM_RUN returned or was asked for. */
enum { COUNT_IO, COUNT_MMIO, COUNT_INTERRUPTED, COUNT_EXITS, COUNT_OTHER, COUNT_RUNS, COUNT_IMMEDIATE, COUNT_INSIDE, COUNTS };
enum { STATS_DATA = 1024 }; /* where they are in the file of KVM_GET_STATS_FD */

struct range { u64 start, end; };

/* What the modelled kernel serves itself: ports and addresses that do not leave KVM_RUN. Python writes it. */
struct inside {
    u8 ports[65536 / 8];
    u64 count;
    struct range mmio[RANGES];
    u64 zone_count;
    struct zone { u64 start, end, is_pio; } zones[ZONES]; /* whose writes are coalesced */

    /* vCPUs in KVM_RUN execute one at a time, in the order in which they come (vcpu.c). */
    volatile u32 tickets, turn; /* of who came last, and whose turn it is */
    u64 *others_wait;           /* for the engines: whether another vCPU waits for its turn; or 0 where there is one */

    /* Interrupt lines that are known to be low, and how often KVM_IRQ_LINE and KVM_IRQ_LINE_STATUS lowered such a one */
    volatile u8 is_low[LINES];
    u64 lowered[2];

    u8 *ring; /* of coalesced writes, of all vCPUs: in the mapping of the first one, where monitors look */
};

/* A slot's pages: a byte each, whether code came from there, and whether that was known at the last look. */
enum { CODE_SLOTS = 64 };
struct code { u64 host, pages; u8 *marks, *seen; };

/* One vCPU; Python's mirror is userkvm/library.py, and a test compares the sizes. */
struct vcpu {
    volatile u8 stop_wanted; /* something interrupts KVM_RUN */
    volatile u8 in_run;
    volatile u8 abandoned;   /* a new state came while an access waited for its answer: the access never happened */
    volatile u8 has_mask;    /* KVM_SET_SIGNAL_MASK gave one */
    int wake_fd;
    void *engine;
    void (*stop_engine)(void *);
    u8 *run;
    struct inside *inside;
    u64 address_mask;        /* without the C-bit */
    u64 signal_mask;
    u64 *counts;             /* in the vCPU's file of statistics */
    u64 stats_fd;

    /* Python's answers for what is inside */
    u32 (*read_port)(u32 port, u32 size);
    void (*write_port)(u32 port, u32 size, u32 value);
    u64 (*read_mmio)(u64 gpa, u32 size);
    void (*write_mmio)(u64 gpa, u32 size, u64 value);

    /* The coroutine */
    u64 started;
    u64 must_end;            /* the coroutine is to return from all of its calls */
    void *stack, *here, *caller;
    u64 in_access;           /* the engine waits in an access for its answer */
    u64 pending;             /* the kind of exit whose answer is awaited, or 0 */
    u64 latched;             /* the answer was taken, though KVM_RUN returned at once */
    u64 answer;
    u64 replay;              /* the kind of access that was reported and undone: made again, it gets `answer` */
    u64 completing;          /* immediate_exit: IN or OUT is to be completed, and nothing else */
    u64 *undo_port;          /* has the engine undo the port access that it is in */
    void *python;            /* the coroutine's own thread state, whichever thread calls KVM_RUN */
    void *executing;         /* what the hooks say that the coroutine executes */
    void *(*exchange)(void *);
    volatile u32 held;       /* another thread changes memory: no guest instruction until it is done */
    volatile u32 parked;
    volatile u32 attention;  /* Python has something to tell the monitor */
    u32 queued;              /* KVM_INTERRUPT gave a vector that the guest did not take yet */
    u64 *eflags;             /* of the engine, where controllers are in the monitor; else 0 */
    u32 ticket, has_turn;
    int64_t result;

    /* Code that was translated (coherence.c) */
    u64 *fetches;            /* how many pages code newly came from */
    u64 fetches_seen, writes_seen;
    u64 writes;              /* of the monitor into code */
    volatile u64 must_protect; /* a page lost its protection */
    u64 thread;              /* whose KVM_RUN it is */
    u64 runner;              /* the same as the C library knows it */
    volatile u64 cancelled;  /* pthread_cancel came for it */
    u64 is_stale;            /* the monitor wrote into code: nothing that was translated is to be executed */
    u64 code_count;
    struct code code[CODE_SLOTS];
};

HIDDEN void note_time(void);

void kvm_watch_vcpu(struct vcpu *v, int is_watched);
HIDDEN void note_code(struct vcpu *v);
HIDDEN void forget_memory(u64 address, u64 size);
HIDDEN void forget_code(void);
HIDDEN int was_code_written(struct vcpu *v);

HIDDEN extern _Thread_local struct vcpu *current_vcpu;
HIDDEN int run_vcpu(struct vcpu *v);
HIDDEN void interrupt_vcpu(void);
HIDDEN void cancel_vcpu(struct vcpu *v, pthread_t thread);
HIDDEN int is_in_run(void);
HIDDEN void handle_kept_signals(void);
HIDDEN void end_vcpu(struct vcpu *v);

HIDDEN int start_python(void);
HIDDEN extern pthread_key_t python_state; /* where a thread's Python is */
HIDDEN extern long (*python_ioctl)(int kind, u64 id, unsigned long request, unsigned long argument);
HIDDEN extern void (*python_loop)(struct vcpu *);
HIDDEN extern void (*python_release)(int kind, u64 id);
HIDDEN extern void (*python_mprotect)(u64 address, u64 size);
HIDDEN extern int (*python_fallocate)(u64 id, int mode, int64_t offset, int64_t size);
/* Where KVM_RUN is logged or made to fail; else 0. */
HIDDEN extern int (*python_before_run)(struct vcpu *);
HIDDEN extern void (*python_after_run)(struct vcpu *, int64_t result);

/* What of ours is under way ends before its thread does: Python and the engine have locks and the turn. */
struct cancellation { int state, type; };
static inline struct cancellation forbid_cancel(void) {
    struct cancellation before;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before.state);
    pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &before.type);
    return before;
}
/* In this order: some C libraries forget what pthread_join is to say when the state is what ends the thread. */
static inline void allow_cancel(struct cancellation before) {
    int other;
    pthread_setcancelstate(before.state, &other);
    pthread_setcanceltype(before.type, &other);
}

HIDDEN void *real(const char *name);
HIDDEN int real_sigaction(int number, const struct sigaction *action, struct sigaction *old);
HIDDEN int descriptor(enum kind kind, u64 id, size_t size, const char *name);
