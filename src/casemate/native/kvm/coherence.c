/* Code that the monitor rewrites: the CPU model must drop what it translated from it, as a CPU snoops its caches.

   Pages that code was translated from are write-protected in the monitor's mapping by userfaultfd. A write, also one that
   the kernel makes for the monitor, stops until a thread here has noted it and given the page free. */
#include "kvm.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

__asm__(".symver pthread_create,pthread_create@GLIBC_2.2.5\n");

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define FEATURES (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_THREAD_ID | 1ull << 12 /* WP_HUGETLBFS_SHMEM */)
#define WP_UNPOPULATED (1ull << 13)

static int faults = -1, sees_first_writes;
enum { VCPUS = 256 };
static struct vcpu *volatile vcpus[VCPUS];

/* Not through the library's own ioctl, which is interposed. */
static long call(unsigned long request, void *argument) { return syscall(SYS_ioctl, faults, request, argument); }

static int protect(u64 address, u64 size, u64 mode) {
    struct uffdio_writeprotect range = {.range = {address, size}, .mode = mode};
    return call(UFFDIO_WRITEPROTECT, &range);
}

/* All code is to be protected anew. */
static void forget_seen(struct vcpu *v) {
    for (u64 s = 0; s < v->code_count; s++) memset(v->code[s].seen, 0, v->code[s].pages);
    v->must_protect = 1;
}

/* Whether a thread is in KVM_RUN of a vCPU of the same VM. */
static int executes_guest(struct vcpu *v, u32 thread) {
    for (int i = 0; i < VCPUS; i++) {
        struct vcpu *each = vcpus[i];
        if (each && each->inside == v->inside && each->in_run && each->thread == thread) return 1;
    }
    return 0;
}

/* The guest's own stores are the CPU model's business; its page only has to be protected anew. */
static void note_write(u64 address, u32 thread) {
    for (int i = 0; i < VCPUS; i++) {
        struct vcpu *v = vcpus[i];
        if (!v) continue;
        for (u64 s = 0; s < v->code_count; s++) {
            struct code *c = &v->code[s];
            u64 page = (address - c->host) / PAGE;
            if (address < c->host || page >= c->pages || !c->seen[page]) continue;
            c->seen[page] = 0;
            v->must_protect = 1;
            if (!executes_guest(v, thread)) __atomic_add_fetch(&v->writes, 1, __ATOMIC_SEQ_CST);
        }
    }
}

/* ---- logs of all writes to a slot: its pages are protected until the first one ---- */

enum { LOGS = 64 };
static pthread_mutex_t noting = PTHREAD_MUTEX_INITIALIZER; /* a page is noted and given free, or taken and protected */
static struct log { u64 host, pages, *volatile bits; } logs[LOGS];

static void note_in_logs(u64 address) {
    for (int i = 0; i < LOGS; i++) {
        u64 *bits = logs[i].bits, page = (address - logs[i].host) / PAGE;
        if (bits && address >= logs[i].host && page < logs[i].pages)
            __atomic_or_fetch(&bits[page / 64], 1ull << page % 64, __ATOMIC_SEQ_CST);
    }
}

/* 0, or an errno: then nobody can say what is written to. */
EXPORT int kvm_log_start(u64 host, u64 size, u64 *bits) {
    struct uffdio_register range = {.range = {host, size}, .mode = UFFDIO_REGISTER_MODE_WP};
    if (!sees_first_writes) return ENOSYS;
    if (call(UFFDIO_REGISTER, &range)) return errno;
    for (int i = 0; i < LOGS; i++)
        if (__sync_bool_compare_and_swap(&logs[i].bits, 0, bits)) {
            logs[i].host = host, logs[i].pages = size / PAGE;
            return protect(host, size, UFFDIO_WRITEPROTECT_MODE_WP) ? errno : 0;
        }
    return ENOSPC;
}

/* What was written to since the last time; it is protected anew before anybody copies it. */
EXPORT void kvm_log_take(u64 *bits, u64 *taken) {
    for (int i = 0; i < LOGS; i++) {
        if (logs[i].bits != bits) continue;
        for (u64 word = 0; word * 64 < logs[i].pages; word++) {
            pthread_mutex_lock(&noting);
            taken[word] = __atomic_exchange_n(&bits[word], 0, __ATOMIC_SEQ_CST);
            for (u64 rest = taken[word]; rest; rest &= rest - 1)
                protect(logs[i].host + (word * 64 + __builtin_ctzll(rest)) * PAGE, PAGE, UFFDIO_WRITEPROTECT_MODE_WP);
            pthread_mutex_unlock(&noting);
        }
    }
}

EXPORT void kvm_log_stop(u64 *bits) {
    for (int i = 0; i < LOGS; i++)
        if (logs[i].bits == bits) {
            logs[i].bits = 0;
            protect(logs[i].host, logs[i].pages * PAGE, 0);
            for (int v = 0; v < VCPUS; v++)
                if (vcpus[v]) forget_seen(vcpus[v]);
        }
}

/* `thread` is about to write. */
static void give_free(u64 page, u32 thread) {
    note_write(page, thread);
    pthread_mutex_lock(&noting);
    note_in_logs(page);
    protect(page, PAGE, 0);
    pthread_mutex_unlock(&noting);
}

/* The CPU model is about to store to a page with code: cheaper than the fault that it would have. */
EXPORT void kvm_before_store(u64 page) {
    struct vcpu *v = current_vcpu;
    for (u64 s = 0; v && s < v->code_count; s++) {
        struct code *c = &v->code[s];
        u64 number = (page - c->host) / PAGE;
        if (page >= c->host && number < c->pages && c->seen[number]) give_free(page, v->thread);
    }
}

static void *serve(void *unused) {
    struct uffd_msg message;
    for (;;) {
        struct pollfd ready = {faults, POLLIN, 0};
        if (poll(&ready, 1, -1) < 0 && errno != EINTR) return unused;
        while (read(faults, &message, sizeof message) == sizeof message)
            if (message.event == UFFD_EVENT_PAGEFAULT)
                give_free(message.arg.pagefault.address & -(u64)PAGE, message.arg.pagefault.feat.ptid);
    }
}

/* Memory changed that may be mapped anywhere. */
void forget_code(void) {
    for (int i = 0; i < VCPUS; i++) {
        struct vcpu *v = vcpus[i];
        if (!v) continue;
        forget_seen(v);
        __atomic_add_fetch(&v->writes, 1, __ATOMIC_SEQ_CST);
    }
}

static void forget_in_slot(struct vcpu *v, struct code *c, u64 address, u64 end) {
    u64 first = address > c->host ? (address - c->host) / PAGE : 0, found = 0;
    for (u64 page = first; page < c->pages && c->host + page * PAGE < end; page++) {
        found |= c->marks[page];
        c->seen[page] = 0;
    }
    v->must_protect = 1;
    if (found) __atomic_add_fetch(&v->writes, 1, __ATOMIC_SEQ_CST);
}

static int overlaps(u64 address, u64 size, u64 other, u64 pages) { return address < other + pages * PAGE && other < address + size; }

/* Other pages are there from now on, or will be when somebody touches them: without the protection of those that were there. */
void forget_memory(u64 address, u64 size) {
    struct uffdio_register range = {.range = {address, size}, .mode = UFFDIO_REGISTER_MODE_WP};
    int holds_code = 0, is_logged = 0;
    for (int i = 0; i < VCPUS; i++) {
        struct vcpu *v = vcpus[i];
        for (u64 s = 0; v && s < v->code_count; s++) {
            if (!overlaps(address, size, v->code[s].host, v->code[s].pages)) continue;
            holds_code = 1;
            forget_in_slot(v, &v->code[s], address, address + size);
        }
    }
    for (int i = 0; i < LOGS; i++) is_logged |= logs[i].bits && overlaps(address, size, logs[i].host, logs[i].pages);
    if (holds_code || is_logged) call(UFFDIO_REGISTER, &range);
    for (u64 page = address; is_logged && page < address + size; page += PAGE) note_in_logs(page);
}

/* 0, or an errno: then what the monitor writes is seen only when everything is forgotten. */
EXPORT int kvm_watch_code(void) {
    struct uffdio_api api = {.api = UFFD_API, .features = FEATURES | WP_UNPOPULATED};
    pthread_t thread;
    sigset_t all, old;
    memset((void *)vcpus, 0, sizeof vcpus);
    /* Without the right to handle faults of the kernel's own, read(2) into such a page would fail. */
    faults = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (faults < 0) return errno;
    sees_first_writes = !call(UFFDIO_API, &api);
    if (!sees_first_writes) { /* before Linux 6.4 */
        syscall(SYS_close, faults);
        api = (struct uffdio_api){.api = UFFD_API, .features = FEATURES};
        faults = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
        if (faults < 0 || call(UFFDIO_API, &api)) return errno;
    }
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&thread, 0, serve, 0);
    sigprocmask(SIG_SETMASK, &old, 0);
    return error;
}

/* Memory that code may come to lie in. 0, or an errno where this kind of mapping cannot be watched. */
EXPORT int kvm_watch_memory(u64 address, u64 size) {
    struct uffdio_register range = {.range = {address, size}, .mode = UFFDIO_REGISTER_MODE_WP};
    return call(UFFDIO_REGISTER, &range) ? errno : 0;
}

EXPORT void kvm_unwatch_memory(u64 address, u64 size) {
    struct uffdio_range range = {address, size};
    call(UFFDIO_UNREGISTER, &range);
}

enum { COMPARED = 4096 };

/* Code pages that are new since the last look are protected. */
static void protect_new(struct vcpu *v) {
    for (u64 i = 0; i < v->code_count; i++) {
        struct code *c = &v->code[i];
        for (u64 first = 0; first < c->pages; first += COMPARED) {
            u64 end = first + COMPARED < c->pages ? first + COMPARED : c->pages;
            if (!memcmp(c->marks + first, c->seen + first, end - first)) continue; /* nearly always */
            for (u64 page = first; page < end; page++) {
                if (c->marks[page] && !c->seen[page]) protect(c->host + page * PAGE, PAGE, UFFDIO_WRITEPROTECT_MODE_WP);
                c->seen[page] = c->marks[page];
            }
        }
    }
}

/* KVM_RUN is about to return: from now on it is the monitor that writes. */
void note_code(struct vcpu *v) {
    if (!v->code_count || (*v->fetches == v->fetches_seen && !v->must_protect)) return;
    v->fetches_seen = *v->fetches, v->must_protect = 0;
    protect_new(v);
}

/* KVM_RUN begins: whether the monitor wrote into code since it last returned. */
int was_code_written(struct vcpu *v) {
    u64 now = v->writes;
    int was_written = now != v->writes_seen;
    v->writes_seen = now;
    return was_written;
}

EXPORT void kvm_watch_vcpu(struct vcpu *v, int is_watched) {
    for (int i = 0; i < VCPUS; i++)
        if (__sync_bool_compare_and_swap(&vcpus[i], is_watched ? 0 : v, is_watched ? v : 0)) return;
}
