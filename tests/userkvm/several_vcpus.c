/* What belongs to all vCPUs of a VM: the ring of coalesced writes, memory, whichever threads run them, and the clock. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { CODE = 0x1000, SIZE = 0x4000, TSC = 0x10, RING = 2 * 4096 };

static int vm, vcpus[2];
static struct kvm_run *runs[2];

static void create(int kvm, int number) {
    struct kvm_sregs system;
    vcpus[number] = ioctl(vm, KVM_CREATE_VCPU, number);
    runs[number] = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpus[number], 0);
    ioctl(vcpus[number], KVM_GET_SREGS, &system);
    system.cs.base = system.cs.selector = 0;
    ioctl(vcpus[number], KVM_SET_SREGS, &system);
}

static void *execute(void *number) {
    struct kvm_regs registers = {.rip = CODE, .rflags = 2};
    ioctl(vcpus[(intptr_t)number], KVM_SET_REGS, &registers);
    ioctl(vcpus[(intptr_t)number], KVM_RUN, 0);
    return 0;
}

static uint64_t offset_of(int vcpu) {
    uint64_t offset = 0;
    struct kvm_device_attr attribute = {.addr = (uintptr_t)&offset};
    ioctl(vcpu, KVM_GET_DEVICE_ATTR, &attribute);
    return offset;
}

static void set_counter(int vcpu, uint64_t value) {
    struct { struct kvm_msrs head; struct kvm_msr_entry entry; } set = {{.nmsrs = 1}, {.index = TSC, .data = value}};
    ioctl(vcpu, KVM_SET_MSRS, &set);
}

int main(void) {
    int kvm = open("/dev/kvm", O_RDWR);
    char *memory = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = {.memory_size = SIZE, .userspace_addr = (uintptr_t)memory};
    struct kvm_coalesced_mmio_zone zone = {.addr = 0x70, .size = 1, .pio = 1};
    vm = ioctl(kvm, KVM_CREATE_VM, 0);
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
    ioctl(vm, KVM_REGISTER_COALESCED_MMIO, &zone);
    create(kvm, 0);
    set_counter(vcpus[0], 0);
    create(kvm, 1);
    set_counter(vcpus[1], 1ull << 50);
    printf("counter apart: %d\n", offset_of(vcpus[0]) != offset_of(vcpus[1]));
    set_counter(vcpus[1], 0);
    printf("counter of a new vCPU apart: %d\n", offset_of(vcpus[0]) != offset_of(vcpus[1]));

    memcpy(memory + CODE, "\xe6\x70\xe4\x71\xf4", 5); /* out 0x70, al; in al, 0x71; hlt */
    for (intptr_t number = 0; number < 2; number++) {
        struct kvm_coalesced_mmio_ring *ring = (void *)((char *)runs[0] + RING);
        execute((void *)number);
        printf("vCPU %d: port %#x, %u in the ring\n", (int)number, runs[number]->io.port, ring->last - ring->first);
    }

    pthread_t thread;
    memcpy(memory + CODE, "\xfe\x06\x00\x20\xeb\xfa", 6); /* again: inc byte [0x2000]; jmp again */
    pthread_create(&thread, 0, execute, (void *)1);
    while (!__atomic_load_n(memory + 0x2000, __ATOMIC_ACQUIRE)) {}
    region.memory_size = 0;
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
    pthread_join(thread, 0);
    printf("without memory: exit %u\n", runs[1]->exit_reason);
    return 0;
}
