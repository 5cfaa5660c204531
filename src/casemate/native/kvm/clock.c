/* How fast the time-stamp counter goes: by the clock that the kernel derives from it, from the first open(2) of /dev/kvm to the
   first question. The answer never changes, for a monitor warns of a counter that has another frequency than before. */
#include "kvm.h"
#include <time.h>

enum { TRIES = 8, LEAST = 5000000 }; /* nanoseconds: read to within 50 or so, they give 10 parts in a million */

static struct moment { u64 ticks, nanoseconds; } first;

static u64 ticks(void) {
    u32 low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (u64)high << 32 | low;
}

/* Both at once, as the closest of some tries has them. */
static struct moment now(void) {
    struct moment best = {0, 0};
    for (u64 i = 0, closest = ~0ull; i < TRIES; i++) {
        struct timespec clock;
        u64 before = ticks();
        clock_gettime(CLOCK_MONOTONIC_RAW, &clock);
        u64 took = ticks() - before;
        if (took >= closest) continue;
        closest = took;
        best = (struct moment){before + took / 2, clock.tv_sec * 1000000000ull + clock.tv_nsec};
    }
    return best;
}

void note_time(void) {
    if (!first.ticks) first = now();
}

EXPORT u64 kvm_tsc_khz(void) {
    static volatile u64 known;
    note_time();
    while (!known) {
        struct moment last = now();
        u64 passed = last.nanoseconds - first.nanoseconds;
        if (passed < LEAST) continue;
        u64 found = (double)(last.ticks - first.ticks) * 1e6 / passed + .5;
        __sync_bool_compare_and_swap(&known, 0, found);
    }
    return known;
}
