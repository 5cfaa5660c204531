/* A VM without memory, whose guest cannot fetch its first instruction, however often it is run. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

int main(int count, char **words) {
    if (count != 2) return 2;
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0), cpu = ioctl(vm, KVM_CREATE_VCPU, 0), errors = 0;
    struct kvm_run *run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    if (run == MAP_FAILED) return 1;
    for (int left = atoi(words[1]); left; left--)
        if (!ioctl(cpu, KVM_RUN, 0)) errors += run->exit_reason == KVM_EXIT_INTERNAL_ERROR;
    printf("internal errors %d\n", errors);
    return 0;
}
