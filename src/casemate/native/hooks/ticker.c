/* The thread beside a CPU sleeps here (host/model/ticker.py), and kicks the CPU at the time when something is due, without
   Python. All times are the host's, in nanoseconds (CLOCK_MONOTONIC). */
#include "cpu.h"

enum { NANOSLEEP = 35, CLOCK_GETTIME = 228, FUTEX = 202, MONOTONIC = 1, WAIT_PRIVATE = 128, WAKE_PRIVATE = 129 };
enum { BILLION = 1000000000, MILLION = 1000000 };

struct ticker {
    u64 due;     /* when the CPU is to be kicked, 0 never; then it is 0 again */
    u64 wakes;   /* when the thread wakes */
    u32 signals; /* how often it was woken */
    u32 closed;
};

struct time { u64 seconds, nanoseconds; };

long system_call(long number, u64 first, u64 second, u64 third, u64 fourth) {
    register u64 r10 __asm__("r10") = fourth;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(first), "S"(second), "d"(third), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}

static u64 now(void) {
    struct time time;
    system_call(CLOCK_GETTIME, MONOTONIC, (u64)&time, 0, 0);
    return time.seconds * BILLION + time.nanoseconds;
}

void sleep_for(u64 nanoseconds) {
    struct time time = {0, nanoseconds};
    system_call(NANOSLEEP, (u64)&time, 0, 0, 0);
}

EXPORT u64 hooks_ticker_size(void) { return sizeof(struct ticker); }

/* Until that time, or until it is woken by more than `signals`. Without a CPU nothing is kicked. */
EXPORT void ticker_sleep(struct ticker *t, struct cpu *c, u64 until, u32 signals) {
    for (;;) {
        u32 signal = __atomic_load_n(&t->signals, __ATOMIC_SEQ_CST);
        u64 due = __atomic_load_n(&t->due, __ATOMIC_SEQ_CST), time = now(), wakes = due && due < until ? due : until;
        if (t->closed || time >= until || (!c && signal != signals)) return;
        if (due && time >= due) {
            int is_still_due = __sync_bool_compare_and_swap(&t->due, due, 0);
            if (!c) return;
            if (is_still_due) hooks_kick(c);
            continue;
        }
        __atomic_store_n(&t->wakes, wakes, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&t->due, __ATOMIC_SEQ_CST) != due) continue;
        struct time left = {(wakes - time) / BILLION, (wakes - time) % BILLION};
        system_call(FUTEX, (u64)&t->signals, WAIT_PRIVATE, signal, (u64)&left);
    }
}

EXPORT void ticker_wake(struct ticker *t) {
    __atomic_fetch_add(&t->signals, 1, __ATOMIC_SEQ_CST);
    system_call(FUTEX, (u64)&t->signals, WAKE_PRIVATE, 1, 0);
}

/* Something is due then, and nothing before: says the CPU's own thread. */
EXPORT void ticker_set(struct ticker *t, u64 due) {
    __atomic_store_n(&t->due, due, __ATOMIC_SEQ_CST);
    if (due && due < __atomic_load_n(&t->wakes, __ATOMIC_SEQ_CST)) ticker_wake(t);
}

/* Something is due then, and perhaps something else before. From any thread. */
EXPORT void ticker_add(struct ticker *t, u64 due) {
    u64 known = __atomic_load_n(&t->due, __ATOMIC_SEQ_CST);
    do {
        if (known && known <= due) return;
    } while (!__atomic_compare_exchange_n(&t->due, &known, due, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    if (due < __atomic_load_n(&t->wakes, __ATOMIC_SEQ_CST)) ticker_wake(t);
}

/* Guest time moved forward: what is due is due earlier. Time moves by microseconds, many times: the thread is woken for a
   millisecond. */
EXPORT void ticker_skip(struct ticker *t, u64 nanoseconds) {
    u64 due = __atomic_load_n(&t->due, __ATOMIC_SEQ_CST), sooner;
    do {
        if (!due) return;
        sooner = due > nanoseconds ? due - nanoseconds : 1;
    } while (!__atomic_compare_exchange_n(&t->due, &due, sooner, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    if (sooner + MILLION < __atomic_load_n(&t->wakes, __ATOMIC_SEQ_CST)) ticker_wake(t);
}
