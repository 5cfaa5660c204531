/* Launches SEV guests and asks for what debuggers and migration would: each line has the errno and the firmware's status. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

static int sev, vm;
static uint8_t page[4096];

static void command(const char *what, uint32_t id, void *data) {
    struct kvm_sev_cmd cmd = {.id = id, .data = (uintptr_t)data, .sev_fd = sev};
    int done = ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &cmd);
    if (what) printf("%s %s %u", what, done ? strerror(errno) : "ok", cmd.error);
}

static void guest(int kvm, uint32_t policy, int with_length) {
    struct kvm_sev_dbg debug = {(uintptr_t)page, (uintptr_t)page, with_length ? 16 : 0};
    struct kvm_sev_launch_start start = {.policy = policy};
    vm = ioctl(kvm, KVM_CREATE_VM, 0);
    command(0, KVM_SEV_INIT, 0);
    command(0, KVM_SEV_LAUNCH_START, &start);
    printf("policy 0x%x: ", policy);
    command(with_length ? "debug" : "no length", KVM_SEV_DBG_DECRYPT, &debug);
    if (with_length) {
        command(", send", KVM_SEV_SEND_START, page);
        command(", receive", KVM_SEV_RECEIVE_START, page);
    }
    puts("");
}

int main(void) {
    struct kvm_sev_dbg debug = {(uintptr_t)page, (uintptr_t)page, 16};
    int kvm = open("/dev/kvm", O_RDWR);
    sev = open("/dev/sev", O_RDWR);
    vm = ioctl(kvm, KVM_CREATE_VM, 0);
    command("plain: debug", KVM_SEV_DBG_DECRYPT, &debug);
    command(", send", KVM_SEV_SEND_START, page);
    puts("");
    guest(kvm, 9, 0);
    guest(kvm, 9, 1);
    guest(kvm, 0, 1);
    return 0;
}
