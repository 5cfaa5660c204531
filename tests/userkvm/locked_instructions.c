/* A guest and a thread of its monitor count in the same memory by locked instructions: nothing that either counts is lost.
   Then locked instructions that the model cannot make atomic: across a boundary, and where there is no memory. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { CODE = 0x1000, COUNTERS = 0x2000, ROUNDS = 1000000, SPLIT = 0x2f01, FAR = 0x2ffe };

extern const char guest[], guest_end[];
__asm__(
    ".code16\nguest:\n"
    "movl $1000000, %ecx\n"
    "counting: lock incl 0x2000\n"
    "movl $1, %eax\nlock xaddl %eax, 0x2004\n"
    "again: movl 0x2008, %eax\nleal 1(%eax), %ebx\nlock cmpxchgl %ebx, 0x2008\njne again\n"
    "lock subw $-1, 0x200c\n"
    "decl %ecx\njnz counting\n"
    "outb %al, $0x80\n"
    "movl $1000, %ecx\n"
    "splitting: lock incl 0x2f01\nlock incl 0x2ffe\ndecl %ecx\njnz splitting\n"
    "movl $7, %eax\nxchgl %eax, (0x8000)\n"
    "outl %eax, $0x80\n"
    "guest_end:\n.code64\n");

static void *count(void *memory) {
    uint32_t *counters = (uint32_t *)((char *)memory + COUNTERS);
    while (!__atomic_load_n(counters, __ATOMIC_ACQUIRE)) {} /* the guest has begun */
    for (int i = 0; i < ROUNDS; i++) {
        for (int number = 0; number < 3; number++) __atomic_fetch_add(counters + number, 1, __ATOMIC_SEQ_CST);
        __atomic_fetch_add((uint16_t *)(counters + 3), 1, __ATOMIC_SEQ_CST);
    }
    return 0;
}

static uint32_t at(char *memory, int offset) {
    uint32_t value;
    memcpy(&value, memory + offset, sizeof value);
    return value;
}

int main(void) {
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0), vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    char *memory = mmap(0, 0x8000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_run *run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct kvm_userspace_memory_region region = {.memory_size = 0x8000, .userspace_addr = (uintptr_t)memory};
    struct kvm_regs registers = {.rip = CODE, .rflags = 2};
    struct kvm_sregs system;
    pthread_t thread;
    memcpy(memory + CODE, guest, guest_end - guest);
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
    ioctl(vcpu, KVM_GET_SREGS, &system);
    system.cs.base = system.cs.selector = 0;
    ioctl(vcpu, KVM_SET_SREGS, &system);
    ioctl(vcpu, KVM_SET_REGS, &registers);
    pthread_create(&thread, 0, count, memory);
    ioctl(vcpu, KVM_RUN, 0);
    pthread_join(thread, 0);
    for (int number = 0; number < 3; number++) printf("lost %u\n", 2 * ROUNDS - at(memory, COUNTERS + 4 * number));
    printf("lost %u\n", (uint16_t)(2 * ROUNDS - at(memory, COUNTERS + 12)));
    while (!ioctl(vcpu, KVM_RUN, 0) && run->exit_reason == KVM_EXIT_MMIO) {
        printf("%s %u bytes at %#llx", run->mmio.is_write ? "write" : "read", run->mmio.len, run->mmio.phys_addr);
        if (run->mmio.is_write) printf(": %u", at((char *)run->mmio.data, 0));
        else memset(run->mmio.data, 9, 4);
        printf("\n");
    }
    printf("split %u and %u, exit %u with %#x\n", at(memory, SPLIT), at(memory, FAR), run->exit_reason,
           at((char *)run + run->io.data_offset, 0));
    return 0;
}
