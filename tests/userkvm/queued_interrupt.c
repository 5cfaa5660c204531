/* A vCPU without interrupt controllers in the kernel: KVM_INTERRUPT while OUT waits for its answer, right before HLT. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { RAM = 0x10000, VECTOR = 0x20, HANDLER = 0x600, CODE = 0x500 };

int main(void) {
    static const uint8_t code[] = {0xfb, 0x90, 0xe6, 0x80, 0xf4};  /* sti; nop; out 0x80; hlt */
    static const uint8_t handler[] = {0xe6, 0x90, 0xcf};           /* out 0x90; iret */
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0), cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    uint8_t *memory = mmap(0, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region slot = {0, 0, 0, RAM, (uintptr_t)memory};
    struct kvm_run *run = mmap(0, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    struct kvm_interrupt interrupt = {VECTOR};
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = CODE, .rsp = 0x8000, .rflags = 2};
    memcpy(memory + CODE, code, sizeof code), memcpy(memory + HANDLER, handler, sizeof handler);
    memory[4 * VECTOR] = HANDLER & 0xff, memory[4 * VECTOR + 1] = HANDLER >> 8;
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot);
    ioctl(cpu, KVM_GET_SREGS, &sregs);
    sregs.cs.base = sregs.cs.selector = 0;
    ioctl(cpu, KVM_SET_SREGS, &sregs), ioctl(cpu, KVM_SET_REGS, &regs);
    for (int exits = 0; exits < 8 && !ioctl(cpu, KVM_RUN, 0); exits++) {
        if (run->exit_reason == KVM_EXIT_IO) printf("port 0x%x: ", run->io.port);
        else printf(run->exit_reason == KVM_EXIT_HLT ? "hlt: " : "exit %u: ", run->exit_reason);
        printf("ready %d\n", run->ready_for_interrupt_injection);
        if (run->exit_reason == KVM_EXIT_HLT) return 0;
        if (run->io.port != 0x80) continue;
        ioctl(cpu, KVM_INTERRUPT, &interrupt);
        run->immediate_exit = 1;
        int done = ioctl(cpu, KVM_RUN, 0);
        printf("at once: %s, ready %d\n", done ? strerror(errno) : "ran", run->ready_for_interrupt_injection);
        run->immediate_exit = 0;
        printf("once more: %s\n", ioctl(cpu, KVM_INTERRUPT, &interrupt) ? strerror(errno) : "taken");
    }
    return 1;
}
