/* Random ioctls on every kind of descriptor from two threads: numbers, pointers and sizes without sense. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static int fds[5], count;
static uint8_t page[8192];

static void *hammer(void *seed_of_thread) {
    unsigned seed = (uintptr_t)seed_of_thread;
    for (int i = 0; i < count; i++) {
        static const unsigned types[] = {0xae, 0xae, 0xae, 'S', 0};
        unsigned number = rand_r(&seed) & 0xff, size = rand_r(&seed) % 5 ? rand_r(&seed) & 0x1ff : rand_r(&seed) & 0x3fff;
        unsigned long request = types[rand_r(&seed) % 5] << 8 | number | size << 16 | (unsigned long)(rand_r(&seed) & 3) << 30;
        uintptr_t arguments[] = {0, 1, 0x1000, (uintptr_t)page, (uintptr_t)page + 8190, 1ull << 63, rand_r(&seed)};
        if (request == KVM_RUN) continue; /* it may run for ever */
        int result = ioctl(fds[rand_r(&seed) % 5], request, arguments[rand_r(&seed) % 7]);
        if (result < 0 && !errno) puts("no errno"), exit(1);
    }
    return 0;
}

int main(int argc, char **argv) {
    pthread_t threads[2];
    count = argc > 1 ? atoi(argv[1]) : 1000;
    uintptr_t first = argc > 2 ? strtoul(argv[2], 0, 0) : 1; /* seed of the first thread */
    fds[0] = open("/dev/kvm", O_RDWR);
    fds[1] = ioctl(fds[0], KVM_CREATE_VM, 0);
    fds[2] = ioctl(fds[1], KVM_CREATE_VCPU, 0);
    fds[3] = open("/dev/sev", O_RDWR);
    fds[4] = ioctl(fds[0], KVM_CREATE_VM, 0);
    for (uintptr_t i = 0; i < 2; i++) pthread_create(&threads[i], 0, hammer, (void *)(first + i));
    for (int i = 0; i < 2; i++) pthread_join(threads[i], 0);
    puts("survived");
    return 0;
}
