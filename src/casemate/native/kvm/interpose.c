/* The calls of the C library by which a monitor finds and uses KVM. What is not about KVM goes to the library's own. */
#include "kvm.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

/* What the preload library's users call is declared nowhere in headers: __open_2 and its like are of fortified code. */
#define REAL(name, type, ...) static type (*real_##name)(__VA_ARGS__); \
    static type (*find_##name(void))(__VA_ARGS__) { return real_##name ? real_##name : (real_##name = real(#name)); }
REAL(open, int, const char *, int, ...)
REAL(openat, int, int, const char *, int, ...)
REAL(fopen, FILE *, const char *, const char *)
REAL(ioctl, int, int, unsigned long, ...)
REAL(close, int, int)
REAL(dup2, int, int, int)
REAL(dup3, int, int, int, int)
REAL(close_range, int, unsigned, unsigned, int)
REAL(closefrom, void, int)
REAL(mprotect, int, void *, size_t, int)
REAL(access, int, const char *, int)
static int (*next_sigaction)(int, const struct sigaction *, struct sigaction *);

/* ---- descriptors: anonymous files, known by their inodes, for they may be duplicated ---- */

enum { MOST = 4096, KVM_TYPE = 0xae, SEV_TYPE = 'S', KVM_RUN = 0xae80 };
static const u32 KVM_IRQ_LINE = 0x4008ae61, KVM_IRQ_LINE_STATUS = 0xc008ae67;
/* The C library has fstat under other names in other versions. */
static int describe_open(int fd, struct stat64 *result) { return syscall(SYS_fstat, fd, result); }

static struct object { u64 inode, id; u8 kind; pid_t owner; struct inside *inside; } objects[MOST];
static int highest;

EXPORT int kvm_register_descriptor(int fd, int kind, u64 id) {
    struct stat64 found;
    if (!describe_open(fd, &found))
        for (int i = 0; i < MOST; i++)
            if (__sync_bool_compare_and_swap(&objects[i].kind, NO_KIND, kind)) {
                objects[i].id = id, objects[i].owner = getpid(), objects[i].inside = 0;
                __atomic_store_n(&objects[i].inode, found.st_ino, __ATOMIC_RELEASE);
                if (i >= highest) highest = i + 1;
                return 1;
            }
    return 0;
}

int descriptor(enum kind kind, u64 id, size_t size, const char *name) {
    int fd = syscall(SYS_memfd_create, name, 1 /* MFD_CLOEXEC */);
    if (fd < 0) return -1;
    if ((!size || !ftruncate(fd, size)) && kvm_register_descriptor(fd, kind, id)) return fd;
    find_close()(fd);
    errno = EMFILE;
    return -1;
}

/* A VM has interrupt controllers, and what is known of their lines. */
EXPORT void kvm_watch_lines(u64 vm, struct inside *inside) {
    for (int i = 0; i < highest; i++)
        if (objects[i].kind == VM && objects[i].id == vm) objects[i].inside = inside;
}

EXPORT int kvm_descriptor(int kind, u64 id, const char *name) { return descriptor(kind, id, 0, name); }

static struct object *object_of(int fd) {
    struct stat64 found;
    if (!highest || describe_open(fd, &found) || !S_ISREG(found.st_mode) || found.st_nlink) return 0;
    for (int i = 0; i < highest; i++)
        if (objects[i].kind && objects[i].inode == found.st_ino) return &objects[i];
    return 0;
}

/* This process, without a system call: what is known of it is gone in one that was forked off. Not in one that shares this
   one's memory (vfork), which is served as this one is, as by KVM. */
static pid_t this_process(void) {
    static pid_t *known;
    if (!known) {
        void *page = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED) return getpid();
        if (madvise(page, PAGE, MADV_WIPEONFORK) || !__sync_bool_compare_and_swap(&known, 0, page)) {
            munmap(page, PAGE);
            return getpid();
        }
    }
    if (!*known) *known = getpid();
    return *known;
}

/* The vCPU that KVM_RUN found behind a number; forgotten where the C library gives the number to another file. */
enum { REMEMBERED = 1024 };
static struct object *runs[REMEMBERED];

static struct object *remembered(int fd) {
    struct object *object = (unsigned)fd < REMEMBERED ? runs[fd] : 0;
    return object && object->kind == VCPU ? object : 0;
}

static void remember(int fd, struct object *object) {
    if ((unsigned)fd < REMEMBERED) runs[fd] = object;
}

static int is_open_elsewhere(u64 inode) {
    int is_open = 0;
    DIR *folder = opendir("/proc/self/fd");
    for (struct dirent *entry; folder && !is_open && (entry = readdir(folder));) {
        struct stat64 found;
        is_open = entry->d_name[0] != '.' && !describe_open(atoi(entry->d_name), &found) && found.st_ino == inode;
    }
    if (folder) closedir(folder);
    return is_open;
}

/* Its last descriptor was closed. */
static void release(struct object *object) {
    int kind = object->kind;
    u64 id = object->id;
    if (kind == VCPU) {
        if (((struct vcpu *)id)->in_run) return; /* another thread is in KVM_RUN: it keeps the vCPU */
        end_vcpu((struct vcpu *)id);
    }
    object->inode = 0;
    __sync_synchronize();
    object->kind = NO_KIND;
    python_release(kind, id);
}

/* A descriptor of it was closed. */
static void leave(struct object *object) {
    int saved = errno;
    if (object && object->owner == getpid()) {
        struct cancellation before = forbid_cancel();
        if (!is_open_elsewhere(object->inode)) release(object);
        allow_cancel(before);
    }
    errno = saved;
}

EXPORT int close(int fd) {
    struct object *object = object_of(fd);
    remember(fd, 0);
    int result = find_close()(fd);
    if (!result) leave(object);
    return result;
}

EXPORT int dup2(int fd, int number) {
    struct object *object = fd == number ? 0 : object_of(number);
    remember(number, 0);
    int result = find_dup2()(fd, number);
    if (result >= 0) leave(object);
    return result;
}

EXPORT int dup3(int fd, int number, int flags) {
    struct object *object = object_of(number);
    remember(number, 0);
    int result = find_dup3()(fd, number, flags);
    if (result >= 0) leave(object);
    return result;
}

EXPORT int close_range(unsigned first, unsigned last, int flags) {
    for (unsigned fd = first; fd <= last && fd < REMEMBERED; fd++) remember(fd, 0);
    return find_close_range()(first, last, flags);
}

EXPORT void closefrom(int first) {
    for (int fd = first < 0 ? 0 : first; fd < REMEMBERED; fd++) remember(fd, 0);
    find_closefrom()(first);
}

/* ---- files ---- */

static const char parameters[] = "/sys/module/kvm";

static enum kind device(const char *path) {
    if (!path) return NO_KIND;
    if (!strcmp(path, "/dev/kvm")) return SYSTEM;
    if (!strcmp(path, "/dev/sev") && getenv("CASEMATE_KVM_SEV")) return SEV;
    return NO_KIND;
}

/* Y, N or a number, for parameters of kvm and kvm_amd that monitors read; 0 for other files. */
static const char *parameter(const char *path) {
    static const struct { const char *name, *value; } known[] = {
        {"_amd/parameters/sev", "Y\n"}, {"_amd/parameters/sev_es", "Y\n"}, {"_amd/parameters/sev_snp", "Y\n"},
        {"_amd/parameters/nested", "0\n"}, {"_amd/parameters/npt", "Y\n"}, {"_amd/parameters/avic", "N\n"},
        {"/parameters/ignore_msrs", "N\n"}, {"/parameters/halt_poll_ns", "0\n"}, {"/parameters/tdp_mmu", "Y\n"},
    };
    if (!path || strncmp(path, parameters, sizeof parameters - 1)) return 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(path + sizeof parameters - 1, known[i].name)) return known[i].value;
    return 0;
}

static int open_parameter(const char *value) {
    int fd = syscall(SYS_memfd_create, "casemate-parameter", 1);
    if (fd >= 0 && (write(fd, value, strlen(value)) < 0 || lseek(fd, 0, SEEK_SET))) return -1;
    return fd;
}

static int open_device(enum kind kind) {
    struct cancellation before = forbid_cancel();
    int error = start_python();
    allow_cancel(before);
    if (error) {
        errno = error;
        return -1;
    }
    return descriptor(kind, 0, 0, kind == SEV ? "casemate-sev" : "casemate-kvm");
}

/* A descriptor of ours, or -2 if the C library is to open the file. */
static int opened(const char *path) {
    enum kind kind = device(path);
    const char *value = kind ? 0 : parameter(path);
    return kind ? open_device(kind) : value ? open_parameter(value) : -2;
}

#define MODE_OF(flags, last) \
    int mode = 0, ours = opened(path); \
    if (ours != -2) return ours; \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, last); mode = va_arg(rest, int); va_end(rest); }

EXPORT int open(const char *path, int flags, ...) { MODE_OF(flags, flags) return find_open()(path, flags, mode); }
EXPORT int open64(const char *path, int flags, ...) {
    MODE_OF(flags, flags) return find_open()(path, flags | O_LARGEFILE, mode);
}
EXPORT int openat(int at, const char *path, int flags, ...) {
    MODE_OF(flags, flags) return find_openat()(at, path, flags, mode);
}
EXPORT int openat64(int at, const char *path, int flags, ...) {
    MODE_OF(flags, flags) return find_openat()(at, path, flags | O_LARGEFILE, mode);
}
EXPORT int __open_2(const char *path, int flags) { return open(path, flags); }
EXPORT int __open64_2(const char *path, int flags) { return open64(path, flags); }
EXPORT int __openat_2(int at, const char *path, int flags) { return openat(at, path, flags); }
EXPORT int __openat64_2(int at, const char *path, int flags) { return openat64(at, path, flags); }

EXPORT FILE *fopen(const char *path, const char *mode) {
    int ours = opened(path);
    return ours == -2 ? find_fopen()(path, mode) : ours < 0 ? 0 : fdopen(ours, mode);
}
EXPORT FILE *fopen64(const char *path, const char *mode) { return fopen(path, mode); }

static int is_there(const char *path) { return device(path) != NO_KIND || parameter(path) != 0; }

EXPORT int access(const char *path, int mode) { return is_there(path) ? 0 : find_access()(path, mode); }
EXPORT int faccessat(int at, const char *path, int mode, int flags) {
    static int (*next)(int, const char *, int, int);
    if (!next) next = real("faccessat");
    return is_there(path) ? 0 : next(at, path, mode, flags);
}

/* A character device that everybody may use, or a file that everybody may read. */
static int describe(const char *path, struct stat *result) {
    memset(result, 0, sizeof *result);
    result->st_mode = device(path) ? S_IFCHR | 0666 : S_IFREG | 0444;
    result->st_nlink = 1;
    result->st_rdev = device(path) ? makedev(10, device(path) == SEV ? 126 : 232) : 0;
    return 0;
}

/* On x86-64 the two structures are one; glibc before 2.33 has no stat() but __xstat(). */
#define STAT(name, real_name, parameters, arguments) \
    EXPORT int name parameters { \
        static int (*next) parameters; \
        if (is_there(path)) return describe(path, result); \
        if (!next) next = real(real_name); \
        return next arguments; \
    }
STAT(stat, "stat", (const char *path, struct stat *result), (path, result))
STAT(__xstat, "__xstat", (int version, const char *path, struct stat *result), (version, path, result))
#undef stat64
__asm__(".globl stat64\n.type stat64,@function\n.set stat64,stat\n.globl __xstat64\n.set __xstat64,__xstat\n");

/* ---- KVM itself ---- */

/* Memory of the monitor that may not be there: 0, or -1. */
static int copy(typeof(process_vm_readv) *call, void *ours, u64 theirs, size_t size) {
    struct iovec local = {ours, size}, remote = {(void *)theirs, size};
    return !size || call(this_process(), &local, 1, &remote, 1, 0) == (ssize_t)size ? 0 : -1;
}

EXPORT int kvm_copy_in(void *ours, u64 theirs, size_t size) { return copy(process_vm_readv, ours, theirs, size); }
EXPORT int kvm_copy_out(void *ours, u64 theirs, size_t size) { return copy(process_vm_writev, ours, theirs, size); }

/* Monitors lower an interrupt line at each access to a device, and mostly it is low. */
static int lowers_low_line(const struct object *object, u32 request, u64 argument) {
    struct inside *inside = object->inside;
    int with_status = request == KVM_IRQ_LINE_STATUS;
    struct { u32 number_or_status, level; } line;
    if (object->kind != VM || !inside || (!with_status && request != KVM_IRQ_LINE)) return 0;
    if (kvm_copy_in(&line, argument, sizeof line)) return 0;
    if (line.level || line.number_or_status >= LINES || !inside->is_low[line.number_or_status]) return 0;
    line.number_or_status = 1; /* "delivered", as Python answers */
    if (with_status && kvm_copy_out(&line, argument, sizeof line)) return 0;
    __sync_fetch_and_add(&inside->lowered[with_status], 1);
    return 1;
}

EXPORT int ioctl(int fd, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    unsigned long argument = va_arg(rest, unsigned long);
    va_end(rest);
    request = (u32)request;
    u8 type = request >> 8;
    struct object *object = request == KVM_RUN ? remembered(fd) : 0;
    if (!object) object = type == KVM_TYPE || type == SEV_TYPE ? object_of(fd) : 0;
    if (!object) return find_ioctl()(fd, request, argument);
    if (object->owner != this_process()) {
        errno = EIO; /* as of a VM of another address space */
        return -1;
    }
    if (object->kind == VCPU && request == KVM_RUN) {
        remember(fd, object);
        return run_vcpu((struct vcpu *)object->id);
    }
    if (lowers_low_line(object, request, argument)) return 0;
    struct cancellation before = forbid_cancel();
    long result = python_ioctl(object->kind, object->id, request, argument);
    allow_cancel(before);
    if (result >= 0) return result;
    errno = -result;
    return -1;
}

/* Of private memory the monitor has a descriptor that takes no calls: what may be done with it is done here. */
static int allocate(int fd, int mode, off_t offset, off_t size, int *result) {
    struct object *object = highest ? object_of(fd) : 0;
    if (!object || object->kind != GUEST_MEMFD || object->owner != getpid()) return 0;
    struct cancellation before = forbid_cancel();
    int error = python_fallocate(object->id, mode, offset, size);
    allow_cancel(before);
    if (error) errno = error;
    *result = error ? -1 : 0;
    return 1;
}
EXPORT int fallocate(int fd, int mode, off_t offset, off_t size) {
    static int (*next)(int, int, off_t, off_t);
    int result;
    if (allocate(fd, mode, offset, size, &result)) return result;
    if (!next) next = real("fallocate");
    result = next(fd, mode, offset, size);
    if (highest && !result && mode & FALLOC_FL_PUNCH_HOLE) forget_code();
    return result;
}
EXPORT int fallocate64(int fd, int mode, off_t offset, off_t size) { return fallocate(fd, mode, offset, size); }

/* The kernel's KVM is told by a notifier of all that is done to mappings. These calls are made by number, for those who allocate
   memory make them while the library's own functions are looked up. */

EXPORT int madvise(void *address, size_t size, int advice) {
    int result = syscall(SYS_madvise, address, size, advice), saved = errno;
    if (highest && !result && (advice == MADV_DONTNEED || advice == MADV_REMOVE || advice == MADV_FREE))
        forget_memory((u64)address, size);
    errno = saved;
    return result;
}

EXPORT void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
    void *result = (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
    int saved = errno;
    if (highest && result != MAP_FAILED && flags & MAP_FIXED) forget_memory((u64)result, size);
    errno = saved;
    return result;
}
EXPORT void *mmap64(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
    return mmap(address, size, protection, flags, fd, offset);
}

EXPORT int mprotect(void *address, size_t size, int protection) {
    int result = find_mprotect()(address, size, protection), saved = errno;
    if (!result && highest && python_mprotect) {
        struct cancellation before = forbid_cancel();
        python_mprotect((u64)address, size);
        allow_cancel(before);
    }
    errno = saved;
    return result;
}

/* ---- signals end KVM_RUN, and are handled behind it: a handler may end its thread, or jump out of it ---- */

enum { SIGNALS = 65, FIRST_QUEUED = 32 }; /* the others come once, however often they are sent */
static struct sigaction handlers[SIGNALS];
static _Thread_local u64 kept_signals; /* a bit each, from 1 on */
static _Thread_local siginfo_t kept_details[SIGNALS];

static void handle(int number, siginfo_t *info, void *context) {
    struct sigaction *action = &handlers[number];
    if (action->sa_flags & SA_SIGINFO) action->sa_sigaction(number, info, context);
    else action->sa_handler(number);
}

static void on_signal(int number, siginfo_t *info, void *context) {
    u64 bit = 1ull << (number - 1);
    if (!is_in_run() || (kept_signals & bit && number >= FIRST_QUEUED)) {
        handle(number, info, context);
        return;
    }
    if (!(kept_signals & bit)) kept_details[number] = *info;
    kept_signals |= bit;
    interrupt_vcpu();
}

void handle_kept_signals(void) {
    while (kept_signals) {
        int number = __builtin_ctzll(kept_signals) + 1;
        sigset_t blocked = handlers[number].sa_mask, before;
        siginfo_t details = kept_details[number];
        ucontext_t context;
        if (!(handlers[number].sa_flags & SA_NODEFER)) sigaddset(&blocked, number);
        sigprocmask(SIG_BLOCK, &blocked, &before);
        kept_signals &= ~(1ull << (number - 1));
        getcontext(&context);
        handle(number, &details, &context);
        sigprocmask(SIG_SETMASK, &before, 0);
    }
}

EXPORT int pthread_cancel(pthread_t thread) {
    static int (*next)(pthread_t);
    if (!next) next = real("pthread_cancel");
    int result = next(thread);
    for (int i = 0; !result && i < highest; i++)
        if (objects[i].kind == VCPU && objects[i].owner == getpid()) cancel_vcpu((struct vcpu *)objects[i].id, thread);
    return result;
}

static int is_wrapped(int number, const struct sigaction *action) {
    if (!action || action->sa_handler == SIG_DFL || action->sa_handler == SIG_IGN) return 0;
    return number > 0 && number < SIGNALS && number != SIGSEGV && number != SIGBUS && number != SIGILL &&
           number != SIGFPE && number != SIGTRAP;
}

int real_sigaction(int number, const struct sigaction *action, struct sigaction *old) {
    if (!next_sigaction) next_sigaction = real("sigaction");
    return next_sigaction(number, action, old);
}

EXPORT int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
    struct sigaction before = {0}, ours;
    int is_known = number > 0 && number < SIGNALS, result;
    if (is_known) before = handlers[number];
    if (is_wrapped(number, action)) {
        ours = *action;
        ours.sa_sigaction = on_signal;
        ours.sa_flags |= SA_SIGINFO;
        handlers[number] = *action;
        result = real_sigaction(number, &ours, old);
    } else {
        result = real_sigaction(number, action, old);
    }
    if (!result && old && old->sa_flags & SA_SIGINFO && old->sa_sigaction == on_signal) *old = before;
    return result;
}

EXPORT sighandler_t signal(int number, sighandler_t handler) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
    return sigaction(number, &action, &old) ? SIG_ERR : old.sa_handler;
}
