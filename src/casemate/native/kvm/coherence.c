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

static int faults = -1;
enum { VCPUS = 256 };
static struct vcpu *volatile vcpus[VCPUS];

/* Not through the library's own ioctl, which is interposed. */
static long call(unsigned long request, void *argument) { return syscall(SYS_ioctl, faults, request, argument); }

static int protect(u64 address, u64 size, u64 mode) {
    struct uffdio_writeprotect range = {.range = {address, size}, .mode = mode};
    return call(UFFDIO_WRITEPROTECT, &range);
}

/* The guest's own stores are the CPU model's business; its page only has to be protected anew. */
static void note_write(u64 address, u32 thread) {
    for (int i = 0; i < VCPUS; i++) {
        struct vcpu *v = vcpus[i];
        if (!v) continue;
        for (u64 s = 0; s < v->code_count; s++) {
            struct code *c = &v->code[s];
            u64 page = (address - c->host) / PAGE;
            if (address < c->host || page >= c->pages) continue;
            c->seen[page] = 0;
            v->must_protect = 1;
            if (!v->in_run || v->thread != thread) __atomic_add_fetch(&v->writes, 1, __ATOMIC_SEQ_CST);
        }
    }
}

static void *serve(void *unused) {
    struct uffd_msg message;
    for (;;) {
        struct pollfd ready = {faults, POLLIN, 0};
        if (poll(&ready, 1, -1) < 0 && errno != EINTR) return unused;
        while (read(faults, &message, sizeof message) == sizeof message)
            if (message.event == UFFD_EVENT_PAGEFAULT) {
                u64 page = message.arg.pagefault.address & -(u64)PAGE;
                note_write(page, message.arg.pagefault.feat.ptid);
                protect(page, PAGE, 0);
            }
    }
}

/* 0, or an errno: then what the monitor writes is seen only when everything is forgotten. */
EXPORT int kvm_watch_code(void) {
    struct uffdio_api api = {.api = UFFD_API, .features = FEATURES};
    pthread_t thread;
    sigset_t all, old;
    memset((void *)vcpus, 0, sizeof vcpus);
    /* Without the right to handle faults of the kernel's own, read(2) into such a page would fail. */
    faults = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (faults < 0) return errno;
    if (call(UFFDIO_API, &api)) return errno;
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

/* Code pages that are new since the last look are protected. */
static void protect_new(struct vcpu *v) {
    for (u64 i = 0; i < v->code_count; i++) {
        struct code *c = &v->code[i];
        for (u64 page = 0; page < c->pages; page++) {
            if (page % 8 == 0 && page + 8 <= c->pages && *(u64 *)(c->marks + page) == *(u64 *)(c->seen + page)) {
                page += 7;
                continue;
            }
            if (c->marks[page] && !c->seen[page]) protect(c->host + page * PAGE, PAGE, UFFDIO_WRITEPROTECT_MODE_WP);
            c->seen[page] = c->marks[page];
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
