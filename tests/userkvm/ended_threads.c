/* Threads that end in the middle of KVM_RUN: another vCPU goes on, and so does theirs in another thread. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SPINNING, WRITING };
static int cpus[2];
static struct kvm_run *runs[2];
static volatile int is_entered;
static _Thread_local sigjmp_buf outside;

static void end_thread(int number) {
    (void)number;
    pthread_exit("by its handler");
}

static void jump_out(int number) {
    (void)number;
    siglongjmp(outside, 1);
}

static void *spin(void *is_cancelled_at_once) {
    if (is_cancelled_at_once) pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, 0);
    if (sigsetjmp(outside, 1)) return "by a jump";
    is_entered = 1;
    ioctl(cpus[SPINNING], KVM_RUN, 0);
    pthread_testcancel();
    return "by KVM_RUN";
}

/* How often a vCPU writes to a port, while the other one spins. */
static int write_ports(int count) {
    int seen = 0;
    while (seen < count && !ioctl(cpus[WRITING], KVM_RUN, 0) && runs[WRITING]->exit_reason == KVM_EXIT_IO) seen++;
    return seen;
}

static void show(const char *how, void *cancelled_at_once, int signal) {
    pthread_t thread;
    void *result;
    is_entered = 0;
    pthread_create(&thread, 0, spin, cancelled_at_once);
    while (!is_entered) usleep(1000);
    int before = write_ports(100);
    if (signal) pthread_kill(thread, signal);
    else pthread_cancel(thread);
    pthread_join(thread, &result);
    printf("%s: ended %s, %d and %d writes\n", how, result == PTHREAD_CANCELED ? "cancelled" : (char *)result, before,
           write_ports(100));
    fflush(stdout);
}

int main(void) {
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
    uint8_t *rom = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region slot = {0, 0, 0xffff0000u, 65536, (uintptr_t)rom};
    memcpy(rom + 0xfff0, "\xeb\xfe", 2);                     /* jmp . */
    memcpy(rom + 0xfff8, "\xe6\x10\xeb\xfc", 4);             /* out; jmp to it */
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot);
    for (int i = 0; i < 2; i++) {
        cpus[i] = ioctl(vm, KVM_CREATE_VCPU, i);
        runs[i] = mmap(0, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, cpus[i], 0);
    }
    struct kvm_regs registers;
    ioctl(cpus[WRITING], KVM_GET_REGS, &registers);
    registers.rip = 0xfff8;
    ioctl(cpus[WRITING], KVM_SET_REGS, &registers);
    signal(SIGUSR1, end_thread);
    signal(SIGUSR2, jump_out);
    alarm(100);
    show("pthread_cancel", "at once", 0);
    show("pthread_cancel, deferred", 0, 0);
    show("pthread_exit in a handler", 0, SIGUSR1);
    show("siglongjmp in a handler", 0, SIGUSR2);
    return 0;
}
