/* First program of a guest: exceptions, signals and timers as user mode sees them (signal(7), setitimer(2)). */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static sigjmp_buf back;
static volatile int seen, depth, deepest, ticks, traps;
static void *volatile where;
static int failures;

static void check(const char *name, int good)
{
    printf("%s: %s\n", name, good ? "good" : "BAD");
    failures += !good;
}

static void jump(int number, siginfo_t *info, void *context)
{
    seen = number;
    where = info->si_addr;
    siglongjmp(back, 1);
}

static void skip(int number, siginfo_t *info, void *context)
{
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
    seen = number;
    where = info->si_addr;
}

static void nest(int number)
{
    if (++depth > deepest)
        deepest = depth;
    if (deepest < 5)
        raise(number);
    --depth;
}

static void tick(int number) { ++ticks; }
static void trap(int number) { ++traps; }

static void handle(int number, void (*action)(int, siginfo_t *, void *), int flags)
{
    struct sigaction sa = {.sa_sigaction = action, .sa_flags = SA_SIGINFO | flags};
    sigaction(number, &sa, NULL);
}

static int child_status(void (*work)(void))
{
    int status = 0;
    pid_t child = fork();
    if (!child) {
        signal(SIGSEGV, SIG_DFL);
        work();
        _exit(7);
    }
    waitpid(child, &status, 0);
    return status;
}

static void nothing(void) { }
static void spin(void) { for (volatile unsigned long count = 0;; ++count); }
static void privileged(void) { __asm__ volatile("hlt"); }

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    char alternate[1 << 16];
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    sigaltstack(&stack, NULL);

    handle(SIGSEGV, jump, SA_ONSTACK | SA_NODEFER);
    if (!sigsetjmp(back, 1))
        *(volatile char *)0x123456000 = 1;
    check("SIGSEGV with its address", seen == SIGSEGV && where == (void *)0x123456000);

    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!sigsetjmp(back, 1))
        page[17] = 1;
    check("SIGSEGV of a read-only page", where == page + 17);
    int privileged_status = child_status(privileged);
    check("SIGSEGV of a privileged instruction", WIFSIGNALED(privileged_status) && WTERMSIG(privileged_status) == SIGSEGV);

    handle(SIGILL, skip, 0);
    __asm__ volatile("ud2");
    check("SIGILL, stepped over by its handler", seen == SIGILL);

    handle(SIGFPE, skip, 0);
    __asm__ volatile("xor %%edx, %%edx; mov $1, %%eax; xor %%ecx, %%ecx; div %%ecx" ::: "eax", "ecx", "edx");
    check("SIGFPE, stepped over by its handler", seen == SIGFPE);

    signal(SIGTRAP, trap);
    __asm__ volatile("int3");
    check("SIGTRAP of int3", traps == 1);
    __asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; nop; nop; nop; pushfq; andl $~0x100, (%%rsp); popfq" ::: "cc",
                     "memory");
    check("SIGTRAP of single steps", traps >= 5);

    struct sigaction nested = {.sa_handler = nest, .sa_flags = SA_NODEFER};
    sigaction(SIGUSR1, &nested, NULL);
    raise(SIGUSR1);
    check("nested signals", deepest == 5 && depth == 0);

    signal(SIGALRM, tick);
    struct itimerval every = {{0, 5000}, {0, 5000}}, never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &every, NULL);
    double sum = 0;
    for (unsigned long loop = 1; ticks < 10; ++loop)
        sum += 1.0 / loop;
    setitimer(ITIMER_REAL, &never, NULL);
    check("ten timer signals through a busy loop", ticks >= 10 && sum > 1);

    struct timespec pause = {0, 20000000}, before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    while (nanosleep(&pause, &pause));
    clock_gettime(CLOCK_MONOTONIC, &after);
    long slept = (after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec;
    check("sleep", slept >= 20000000);

    check("exit code of a child", WEXITSTATUS(child_status(nothing)) == 7);
    pid_t child = fork();
    if (!child)
        spin();
    usleep(20000);
    kill(child, SIGKILL);
    int status;
    waitpid(child, &status, 0);
    check("busy child killed", WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);

    unsigned char *memory = mmap(NULL, 8 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned long total = 0;
    for (int at = 0; at < 8 << 20; at += 4096)
        memory[at] = at >> 12;
    for (int at = 0; at < 8 << 20; at += 4096)
        total += memory[at];
    check("page faults", total == 8 * 127 * 256 + 8 * 128);

    printf("%s\n", failures ? "SOMETHING IS WRONG" : "ALL IS WELL");
    usleep(50000);
    reboot(RB_POWER_OFF);
    return 1;
}
