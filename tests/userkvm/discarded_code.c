/* The monitor puts other pages where its guest's code was, and code into them: the guest executes that, and what replaces it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SIZE = 0x4000, CODE = 0x1000 };

static int vcpu, vm;
static struct kvm_run *run;

static void place(char *memory, char value) {
    char code[] = {'\xb0', value, '\xe6', '\x80', '\xf4'}; /* mov al, value; out 0x80, al; hlt */
    memcpy(memory + CODE, code, sizeof code);
}

static void execute(const char *when, char *memory) {
    struct kvm_regs registers = {.rip = CODE, .rflags = 2};
    ioctl(vcpu, KVM_SET_REGS, &registers);
    ioctl(vcpu, KVM_RUN, 0);
    printf("%s: %u\n", when, *((uint8_t *)run + run->io.data_offset));
    place(memory, memory[CODE + 1] + 1);
    ioctl(vcpu, KVM_SET_REGS, &registers);
    ioctl(vcpu, KVM_RUN, 0);
    printf("rewritten: %u\n", *((uint8_t *)run + run->io.data_offset));
}

static void show(char *memory) {
    struct kvm_userspace_memory_region region = {.memory_size = SIZE, .userspace_addr = (uintptr_t)memory}, none = {0};
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &none);
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

int main(void) {
    int kvm = open("/dev/kvm", O_RDWR), flags = MAP_PRIVATE | MAP_ANONYMOUS, file = memfd_create("memory", 0);
    vm = ioctl(kvm, KVM_CREATE_VM, 0), vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    char *memory = mmap(0, SIZE, PROT_READ | PROT_WRITE, flags, -1, 0), *shared;
    struct kvm_sregs system;
    ioctl(vcpu, KVM_GET_SREGS, &system);
    system.cs.base = system.cs.selector = 0;
    ioctl(vcpu, KVM_SET_SREGS, &system);
    show(memory);
    place(memory, 1);
    execute("first", memory);
    madvise(memory + CODE, 0x1000, MADV_DONTNEED);
    place(memory, 11);
    execute("discarded", memory);
    mmap(memory + CODE, 0x1000, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0);
    place(memory, 21);
    execute("mapped anew", memory);
    if (ftruncate(file, SIZE)) return 1;
    shared = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    show(shared);
    place(shared, 31);
    execute("shared", shared);
    fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, CODE, 0x1000);
    place(shared, 41);
    execute("punched", shared);
    return 0;
}
