/* Asks for the frequency of the time-stamp counter for 200 ms, and measures it meanwhile. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <errno.h>
#include <sys/ioctl.h>
#include <time.h>

struct moment { unsigned long long ticks; double milliseconds; };

static struct moment now(void) {
    struct moment best = {0, 0};
    unsigned long long closest = ~0ull;
    for (int i = 0; i < 100; i++) {
        struct timespec clock;
        unsigned long long before = __builtin_ia32_rdtsc(), after;
        clock_gettime(CLOCK_MONOTONIC_RAW, &clock);
        after = __builtin_ia32_rdtsc();
        if (after - before >= closest) continue;
        closest = after - before;
        best.ticks = before + closest / 2;
        best.milliseconds = clock.tv_sec * 1e3 + clock.tv_nsec / 1e6;
    }
    return best;
}

int main(void) {
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
    int frequency = ioctl(vm, KVM_GET_TSC_KHZ, 0), vcpu = ioctl(vm, KVM_CREATE_VCPU, 0), changes = 0;
    struct moment first = now(), last = first;
    while (last.milliseconds < first.milliseconds + 200) {
        if (ioctl(vm, KVM_GET_TSC_KHZ, 0) != frequency || ioctl(vcpu, KVM_GET_TSC_KHZ, 0) != frequency) changes++;
        last = now();
    }
    double measured = (last.ticks - first.ticks) / (last.milliseconds - first.milliseconds), off = frequency / measured - 1;
    printf("changes %d\n", changes);
    printf("within 100 parts in a million: %s\n", off * off < 1e-8 ? "yes" : "no");
    for (int parts = 200; parts <= 300; parts += 100) {
        int result = ioctl(vcpu, KVM_SET_TSC_KHZ, frequency - (long)frequency * parts / 1000000);
        printf("%d less: %s\n", parts, result ? strerror(errno) : "taken");
    }
    return 0;
}
