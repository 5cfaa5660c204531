/* A small VMM with the design of the mail, in its versions (docs/tutorial-seed.md):

       vmm first|final -pflash|-bios|-pflash-hashes

   It launches a SEV-ES guest of the new VM type with debug-swap. Its firmware is flash (-pflash, and -pflash-hashes, which also
   measures 176 bytes of RAM) or RAM (-bios); the guest writes into what should be RAM, and halts. `first` protects as the
   mail's first version did, `final` as its last one does. It prints what became of the guest. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { PAGE = 0x1000, RAM = 0x100000, FLASH = 0x10000, HASHES = 0x8c00, HASHES_SIZE = 176, DEBUG_SWAP = 0x20 };
enum { VM_TYPE_SEV_ES = 3, SEV_INIT2 = 22 };
#define FLASH_AT (0x100000000ull - FLASH)

struct init2 { uint64_t vmsa_features; uint32_t flags; uint16_t ghcb_version, pad1; uint32_t pad2[8]; };

/* The guest, in real mode at its reset vector: one write, to the address that was put at 2, and HLT. The segment's base
   is that of the firmware for `firmware`, and 0 for RAM. */
static const uint8_t write_firmware[] = {0x2e, 0xc6, 0x06, 0x00, 0x10, 0x55, 0xf4}; /* mov byte [cs:0x1000], 0x55; hlt */
static const uint8_t write_ram[] = {0xc6, 0x06, 0x00, 0x8d, 0x55, 0xf4};            /* mov byte [0x8d00], 0x55; hlt */

static int vm, sev;
static int is_first, is_flash, has_hashes;
static int protects; /* the mail's flag: whether anything is to be protected */

static void check(int ok, const char *what) {
    if (ok) return;
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static void command(uint32_t id, void *data, const char *what) {
    struct kvm_sev_cmd cmd = {.id = id, .data = (uintptr_t)data, .sev_fd = sev};
    check(ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &cmd) == 0, what);
}

/* From whole pages to whole pages, as mprotect wants it. */
static void protect(uint8_t *memory, uint64_t size, int access) {
    if (!protects) return;
    uintptr_t start = (uintptr_t)memory & ~(uintptr_t)(PAGE - 1);
    uintptr_t end = ((uintptr_t)memory + size + PAGE - 1) & ~(uintptr_t)(PAGE - 1);
    check(mprotect((void *)start, end - start, access) == 0, "mprotect");
}

static void add_slot(uint32_t number, uint64_t gpa, uint8_t *memory, uint64_t size, int is_rom) {
    struct kvm_userspace_memory_region slot = {number, 0, gpa, size, (uintptr_t)memory};
    if (is_rom) protect(memory, size, PROT_READ);
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
}

static void update(uint8_t *memory, uint32_t size) {
    struct kvm_sev_launch_update_data data = {(uintptr_t)memory, size};
    command(KVM_SEV_LAUNCH_UPDATE_DATA, &data, "KVM_SEV_LAUNCH_UPDATE_DATA");
}

/* What QEMU calls sev_encrypt_flash: the first version lifted the protection here, and so for the hashes, too. */
static void encrypt(uint8_t *memory, uint32_t size) {
    if (is_first) protect(memory, size, PROT_READ | PROT_WRITE);
    update(memory, size);
    if (is_first) protect(memory, size, PROT_READ);
}

/* What QEMU calls x86_firmware_configure: the last version lifts it here, for the firmware alone. */
static void configure_firmware(uint8_t *firmware) {
    if (!is_first) protect(firmware, FLASH, PROT_READ | PROT_WRITE);
    encrypt(firmware, FLASH);
    if (!is_first) protect(firmware, FLASH, PROT_READ);
}

static void launch(uint8_t *ram, uint8_t *firmware) {
    struct init2 features = {.vmsa_features = DEBUG_SWAP};
    command(SEV_INIT2, &features, "KVM_SEV_INIT2");
    if (is_first) protects = 1; /* for every SEV-ES guest with features */
    struct kvm_sev_launch_start start = {.policy = 5};
    command(KVM_SEV_LAUNCH_START, &start, "KVM_SEV_LAUNCH_START");
    struct kvm_enc_region regions[] = {{(uintptr_t)ram, RAM}, {(uintptr_t)firmware, FLASH}};
    for (int i = 0; i < 2; i++) check(ioctl(vm, KVM_MEMORY_ENCRYPT_REG_REGION, &regions[i]) == 0, "region");
    if (!is_first && is_flash && !ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_READONLY_MEM)) {
        printf("warning: this VM has no read-only memory, its flash is protected by mappings\n");
        protects = 1;
    }
    add_slot(0, 0, ram, RAM, 0);
    add_slot(1, FLASH_AT, firmware, FLASH, is_flash);
    configure_firmware(firmware);
    if (has_hashes) encrypt(ram + HASHES, HASHES_SIZE);
}

static void finish(void) {
    uint8_t blob[48];
    struct kvm_sev_launch_measure measure = {(uintptr_t)blob, sizeof blob};
    command(KVM_SEV_LAUNCH_UPDATE_VMSA, 0, "KVM_SEV_LAUNCH_UPDATE_VMSA");
    command(KVM_SEV_LAUNCH_MEASURE, &measure, "KVM_SEV_LAUNCH_MEASURE");
    command(KVM_SEV_LAUNCH_FINISH, 0, "KVM_SEV_LAUNCH_FINISH");
}

static int run(int kvm, int vcpu) {
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *shared = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    check(shared != MAP_FAILED, "kvm_run");
    if (ioctl(vcpu, KVM_RUN, 0) == 0) {
        printf("exit reason %u\n", shared->exit_reason);
        return shared->exit_reason == KVM_EXIT_HLT ? 0 : 1;
    }
    printf("KVM_RUN: %s, exit reason %u\n", strerror(errno), shared->exit_reason);
    return 1;
}

int main(int count, char **words) {
    if (count != 3) return 2;
    is_first = !strcmp(words[1], "first");
    is_flash = strcmp(words[2], "-bios");
    has_hashes = !strcmp(words[2], "-pflash-hashes");
    int kvm = open("/dev/kvm", O_RDWR);
    sev = open("/dev/sev", O_RDWR);
    check(kvm >= 0 && sev >= 0, "open");
    vm = ioctl(kvm, KVM_CREATE_VM, VM_TYPE_SEV_ES);
    check(vm >= 0, "KVM_CREATE_VM");
    uint8_t *ram = mmap(0, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *firmware = mmap(0, FLASH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(ram != MAP_FAILED && firmware != MAP_FAILED, "mmap");
    const uint8_t *code = is_flash ? write_ram : write_firmware;
    memcpy(firmware + FLASH - 16, code, is_flash ? sizeof write_ram : sizeof write_firmware);
    launch(ram, firmware);
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    check(vcpu >= 0, "KVM_CREATE_VCPU");
    finish();
    return run(kvm, vcpu);
}
