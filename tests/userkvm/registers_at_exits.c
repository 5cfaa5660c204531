/* Registers at exits: RIP and RFLAGS are those of the instruction, and a monitor may set the same ones again and again. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { SIZE = 0x4000, CODE = 0x1000, CARRY = 1 };

int main(void) {
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0), vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    struct kvm_run *run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    char *memory = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = {.memory_size = SIZE, .userspace_addr = (uintptr_t)memory};
    struct kvm_regs start = {.rip = CODE, .rflags = 2, .rax = 0xff}, registers;
    struct kvm_sregs system;
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
    ioctl(vcpu, KVM_GET_SREGS, &system);
    system.cs.base = system.cs.selector = 0;
    ioctl(vcpu, KVM_SET_SREGS, &system);
    memcpy(memory + CODE, "\x04\x01\xe6\x80\xe4\x81\xf4", 7); /* add al, 1; out 0x80, al; in al, 0x81; hlt */
    for (int i = 0; i < 2; i++) {
        ioctl(vcpu, KVM_SET_REGS, &start);
        for (int exit = 0; exit < 2; exit++) {
            ioctl(vcpu, KVM_RUN, 0);
            ioctl(vcpu, KVM_GET_REGS, &registers);
            printf("port %#x at %#llx, carry %d\n", run->io.port, registers.rip, (int)(registers.rflags & CARRY));
        }
    }
    return 0;
}
