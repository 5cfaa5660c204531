/* Asks again and again for a vCPU that cannot be made, for its VM has a slot with nothing behind it, and says what is left. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

static unsigned long mapped(void) { /* MiB */
    unsigned long kib = 0;
    char line[100];
    FILE *file = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, file)) sscanf(line, "VmSize: %lu", &kib);
    fclose(file);
    return kib >> 10;
}

int main(void) {
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
    struct kvm_sev_cmd init = {.id = KVM_SEV_INIT, .sev_fd = open("/dev/sev", O_RDWR)};
    struct kvm_userspace_memory_region region = {.memory_size = 0x10000, .userspace_addr = 0x10000};
    unsigned long before = 0;
    ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &init);
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
    for (int i = 0; i < 20; i++) {
        if (ioctl(vm, KVM_CREATE_VCPU, 0) >= 0) return 1;
        if (!i) before = mapped(); /* an engine has 1 GiB for its translations */
    }
    printf("%s, %s\n", strerror(errno), mapped() < before + 1000 ? "no VM is left" : "VMs are left");
    return 0;
}
