/* Launches a SEV guest that may be debugged, and one that may not, and reads and writes the memory of both. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { SIZE = 2 * 4096, AT = 4090, LENGTH = 11 };
static int sev, vm;

static int command(uint32_t id, void *data, uint32_t *status) {
    struct kvm_sev_cmd cmd = {.id = id, .data = (uintptr_t)data, .sev_fd = sev};
    int done = ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &cmd) ? errno : 0;
    if (status) *status = cmd.error;
    return done;
}

static void debug(const char *what, uint32_t id, const void *from, void *to, uint32_t length) {
    struct kvm_sev_dbg both = {(uintptr_t)from, (uintptr_t)to, length};
    uint32_t status;
    int done = command(id, &both, &status);
    printf("%s %s %u\n", what, done ? strerror(done) : "ok", status);
}

static void guest(int kvm, uint32_t policy) {
    uint8_t *memory = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), seen[SIZE], other[LENGTH];
    struct kvm_userspace_memory_region slot = {0, 0, 0, SIZE, (uintptr_t)memory};
    struct kvm_sev_launch_start start = {.policy = policy};
    struct kvm_sev_launch_update_data update = {(uintptr_t)memory, SIZE};
    uint8_t blob[64];
    struct kvm_sev_launch_measure measure = {(uintptr_t)blob, sizeof blob};
    memset(memory, 0x33, SIZE), memset(other, 0x44, LENGTH), memset(seen, 0, SIZE);
    printf("policy 0x%x\n", policy);
    vm = ioctl(kvm, KVM_CREATE_VM, 0);
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot);
    command(KVM_SEV_INIT, 0, 0);
    command(KVM_SEV_LAUNCH_START, &start, 0);
    command(KVM_SEV_LAUNCH_UPDATE_DATA, &update, 0);
    debug("too early", KVM_SEV_DBG_DECRYPT, memory, seen, SIZE);
    command(KVM_SEV_LAUNCH_MEASURE, &measure, 0);
    command(KVM_SEV_LAUNCH_FINISH, 0, 0);
    debug("write", KVM_SEV_DBG_ENCRYPT, other, memory + AT, LENGTH);
    debug("read", KVM_SEV_DBG_DECRYPT, memory, seen, SIZE);
    debug("nowhere", KVM_SEV_DBG_DECRYPT, (void *)0x10000, seen, 16);
    debug("to nowhere", KVM_SEV_DBG_DECRYPT, memory, (void *)0x10000, 16);
    debug("nothing", KVM_SEV_DBG_DECRYPT, memory, seen, 0);
    int right = 0, hidden = 0;
    for (int i = 0; i < SIZE; i++) {
        uint8_t byte = i >= AT && i < AT + LENGTH ? 0x44 : 0x33;
        right += seen[i] == byte, hidden += memory[i] != byte;
    }
    printf("right %s, hidden from the host %s\n", right == SIZE ? "all" : "not all", hidden > SIZE * 9 / 10 ? "yes" : "no");
}

int main(void) {
    int kvm = open("/dev/kvm", O_RDWR);
    sev = open("/dev/sev", O_RDWR);
    guest(kvm, 0);
    guest(kvm, 1);
    return 0;
}
