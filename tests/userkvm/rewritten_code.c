/* Code that the VMM rewrites, and a mapping that it makes read-only below a slot. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ROM = 65536, ROM_AT = 0xffff0000u, STORE_AT = 0x1000 };

/* again: mov al, VALUE; out 0x80, al; mov byte [0x1000], 0x55; jmp again */
static const uint8_t code[] = {0xb0, 0x11, 0xe6, 0x80, 0xc6, 0x06, 0x00, 0x10, 0x55, 0xeb, 0xf5};

int main(void) {
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
    uint8_t *rom = mmap(0, ROM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *ram = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region slots[] = {
        {0, 0, ROM_AT, ROM, (uintptr_t)rom}, {1, 0, STORE_AT, 4096, (uintptr_t)ram}};
    memcpy(rom + 0xfff0, code, sizeof code);
    for (int i = 0; i < 2; i++) ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slots[i]);
    int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    struct kvm_run *run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    for (int step = 0; step < 8; step++) {
        int failed = ioctl(cpu, KVM_RUN, 0);
        if (failed) {
            printf("%d errno %d stored %x\n", step, errno, ram[0]);
            mprotect(ram, 4096, PROT_READ | PROT_WRITE);
            continue;
        }
        printf("%d exit %d port %x value %x stored %x\n", step, run->exit_reason, run->io.port,
               ((uint8_t *)run)[run->io.data_offset], ram[0]);
        if (step == 1) rom[0xfff1] = 0x22;
        if (step == 3) {
            int zero = open("/dev/zero", O_RDONLY); /* by the kernel */
            if (read(zero, rom + 0xfff1, 1) != 1) return 1;
        }
        if (step == 4) mprotect(ram, 4096, PROT_READ);
    }
    return 0;
}
