/* Python in the process of the monitor: loaded when /dev/kvm is first opened, by the C interface that all versions share. */
#include "kvm.h"
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Where the C library keeps these moved with version 2.34; the old names are there everywhere. */
__asm__(".symver pthread_getspecific,pthread_getspecific@GLIBC_2.2.5\n");
__asm__(".symver dlopen,dlopen@GLIBC_2.2.5\n.symver dlsym,dlsym@GLIBC_2.2.5\n.symver dlerror,dlerror@GLIBC_2.2.5\n");

long (*python_ioctl)(int, u64, unsigned long, unsigned long);
void (*python_loop)(struct vcpu *);
void (*python_release)(int, u64);
void (*python_mprotect)(u64, u64);
int (*python_fallocate)(u64, int, int64_t, int64_t);
int (*python_before_run)(struct vcpu *);
void (*python_after_run)(struct vcpu *, int64_t);
static void (*python_finish)(void);

/* Python, when it is ready. */
EXPORT void kvm_register(void *ioctl, void *loop, void *release, void *mprotect, void *fallocate, void *finish) {
    python_fallocate = fallocate, python_loop = loop, python_release = release, python_mprotect = mprotect, python_finish = finish;
    python_ioctl = ioctl;
}

EXPORT void kvm_watch_runs(void *before, void *after) { python_before_run = before, python_after_run = after; }

static int refuse(const char *what, const char *remedy) {
    fprintf(stderr, "casemate: error: %s; %s\n", what, remedy);
    return ENODEV;
}

pthread_key_t python_state;

/* A coroutine needs a Python thread state of its own: it goes on in whatever thread calls KVM_RUN. Python keeps the state of
   the calling thread under a key that it tells nobody; the value is known, and it is unlike any other. */
static int find_key(void *(*this_state)(void)) {
    void *state = this_state ? this_state() : 0;
    for (python_state = 0; state && python_state < PTHREAD_KEYS_MAX; python_state++)
        if (pthread_getspecific(python_state) == state) return 1;
    return 0;
}

static pid_t owner;

static void finish(void) {
    if (python_finish && getpid() == owner) python_finish();
}

static int load(void) {
    const char *path = getenv("CASEMATE_KVM_PYTHON"), *home = getenv("CASEMATE_KVM_HOME");
    const char *code = getenv("CASEMATE_KVM_START");
    int (*is_running)(void) = dlsym(RTLD_DEFAULT, "Py_IsInitialized");
    if (!path || !code) return refuse("the library was preloaded by hand", "start the monitor by `casemate kvm`");
    if (is_running && is_running())
        return refuse("this program runs a Python of its own, and two do not fit into one process",
                      "start the monitor from another program");
    void *python = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!python) return refuse(dlerror(), "install the package with Python's shared library");
    void (*initialize)(int) = dlsym(python, "Py_InitializeEx");
    void (*set_home)(const wchar_t *) = dlsym(python, "Py_SetPythonHome");
    wchar_t *(*decode)(const char *, size_t *) = dlsym(python, "Py_DecodeLocale");
    int (*run)(const char *) = dlsym(python, "PyRun_SimpleString");
    void *(*release_lock)(void) = dlsym(python, "PyEval_SaveThread");
    int *ignore_environment = dlsym(python, "Py_IgnoreEnvironmentFlag"), *no_site = dlsym(python, "Py_NoSiteFlag");
    if (!initialize || !run || !release_lock) return refuse("that is no library of Python's", "name another");
    if (ignore_environment) *ignore_environment = 1;
    if (no_site) *no_site = 1;
    if (home && set_home && decode) set_home(decode(home, 0));
    initialize(0);
    if (!find_key(dlsym(python, "PyGILState_GetThisThreadState")))
        return refuse("this Python keeps the states of its threads elsewhere", "use Python 3.11 to 3.13");
    int failed = run(code);
    release_lock();
    if (failed || !python_ioctl) return refuse("casemate could not start in the monitor", "see above");
    owner = getpid();
    atexit(finish);
    return 0;
}

/* A process that was forked off has a copy of Python, without its threads: it gets a KVM of its own. */
static int start_anew(void) {
    int (*ensure)(void) = dlsym(RTLD_DEFAULT, "PyGILState_Ensure"), (*run)(const char *) = dlsym(RTLD_DEFAULT, "PyRun_SimpleString");
    void (*release)(int) = dlsym(RTLD_DEFAULT, "PyGILState_Release"), (*after_fork)(void) = dlsym(RTLD_DEFAULT, "PyOS_AfterFork_Child");
    if (!ensure || !run || !release || !after_fork) return ENODEV;
    int state = ensure();
    after_fork();
    int failed = run("from casemate.userkvm import server; server.start()");
    release(state);
    if (failed) return refuse("casemate could not start in a process that was forked off", "see above");
    owner = getpid();
    return 0;
}

static int failure;

static void load_once(void) {
    sigset_t all, old;
    sigfillset(&all); /* threads that Python makes take no signal of the monitor's */
    sigdelset(&all, SIGSEGV), sigdelset(&all, SIGBUS), sigdelset(&all, SIGILL), sigdelset(&all, SIGFPE);
    sigprocmask(SIG_SETMASK, &all, &old);
    failure = load();
    sigprocmask(SIG_SETMASK, &old, 0);
}

/* 0, or the errno that open(2) is to fail with. */
int start_python(void) {
    static volatile int state; /* 0, 1 while it is loaded, 2 */
    if (__sync_bool_compare_and_swap(&state, 0, 1)) {
        note_time();
        load_once();
        state = 2;
    }
    while (state == 1) usleep(1000);
    if (!failure && owner != getpid()) return start_anew();
    return failure;
}

void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "casemate: error: the C library has no %s; use another\n", name);
        abort();
    }
    return found;
}
