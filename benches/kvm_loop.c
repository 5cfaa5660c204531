// The cheapest KVM loop there is: runs an image of 64 KiB, answers its exits with zeroes, prints nanoseconds an exit
// (Linux Documentation/virt/kvm/api.rst). Arguments: image, number of exits. With 0 exits: nanoseconds a slot flip.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { IMAGE = 0x10000, RAM = 0x200000, FLIPS = 2000 };

static double nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e9 + now.tv_nsec;
}

static int checked(int result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static void set_slot(int vm, int slot, uint64_t gpa, uint64_t size, void *memory) {
    struct kvm_userspace_memory_region region = {.slot = slot, .guest_phys_addr = gpa, .memory_size = size,
                                                 .userspace_addr = (uintptr_t)memory};
    checked(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "slot");
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int kvm = checked(open("/dev/kvm", O_RDWR), "/dev/kvm");
    int vm = checked(ioctl(kvm, KVM_CREATE_VM, 0), "VM");
    uint64_t identity = 0xfeffc000;
    struct kvm_pit_config pit = {0};
    checked(ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity), "identity map");
    checked(ioctl(vm, KVM_SET_TSS_ADDR, identity + 0x1000), "TSS");
    checked(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "irqchip");
    checked(ioctl(vm, KVM_CREATE_PIT2, &pit), "PIT");
    char *memory = mmap(NULL, RAM + IMAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int file = checked(open(argv[1], O_RDONLY), argv[1]);
    if (read(file, memory + RAM, IMAGE) != IMAGE) return 1;
    set_slot(vm, 0, 0, RAM, memory);
    set_slot(vm, 1, 0x100000000 - IMAGE, IMAGE, memory + RAM);
    int vcpu = checked(ioctl(vm, KVM_CREATE_VCPU, 0), "vCPU");
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[256];
    } cpuid = {.head.nent = 256};
    checked(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "CPUID");
    checked(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "CPUID");
    int size = checked(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "size");
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);

    long exits = atol(argv[2]), count = exits ? exits : FLIPS;
    double start = nanoseconds();
    for (long i = -100; i < count; i++) {
        if (i == 0) start = nanoseconds();
        if (exits) {
            checked(ioctl(vcpu, KVM_RUN, 0), "run");
            if (run->exit_reason == KVM_EXIT_IO) memset((char *)run + run->io.data_offset, 0, run->io.size);
            else if (run->exit_reason == KVM_EXIT_MMIO) memset(run->mmio.data, 0, 8);
            else return 1;
        } else {
            set_slot(vm, 0, 0, 0, memory);
            set_slot(vm, 0, 0, RAM, memory);
        }
    }
    printf("%.0f\n", (nanoseconds() - start) / count);
    return 0;
}
