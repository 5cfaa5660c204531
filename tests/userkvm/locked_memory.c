/* A monitor that keeps all of its memory from being paged out (QEMU -overcommit mem-lock=on). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

int main(void) {
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
    struct kvm_sregs system;
    mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT);
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    ioctl(vcpu, KVM_GET_SREGS, &system);
    system.cr3 = 0x1000; /* translations are forgotten */
    printf("registers %s\n", ioctl(vcpu, KVM_SET_SREGS, &system) ? strerror(errno) : "set");
    return 0;
}
