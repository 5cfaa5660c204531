/* Launches SNP guests: what KVM_SEV_SNP_LAUNCH_UPDATE refuses, and a vCPU that another thread makes meanwhile. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* Newer than the headers of Debian 12 (Linux 6.11). */
enum { SNP_VM = 4, INIT2 = 22, START = 100, UPDATE = 101, MEMFD_SLOT = 4, PRIVATE = 8, NORMAL = 1, PAGE = 4096 };
struct region { uint32_t slot, flags; uint64_t gpa, size, address, offset; uint32_t file, pad; uint64_t more[14]; };
struct attributes { uint64_t gpa, size, attributes, flags; };
struct memfd { uint64_t size, flags, more[6]; };
struct start { uint64_t policy; uint8_t gosvw[16]; uint16_t flags; uint8_t pad[6]; uint64_t more[4]; };
struct update { uint64_t gfn, address, len; uint8_t type, pad; uint16_t flags; uint32_t pad2; uint64_t more[4]; };
#define SET_REGION _IOW(KVMIO, 0x49, struct region)
#define SET_ATTRIBUTES _IOW(KVMIO, 0xd2, struct attributes)
#define CREATE_MEMFD _IOWR(KVMIO, 0xd4, struct memfd)

static int kvm, sev, vm;
static char *memory;

static int command(uint32_t id, void *data) {
    struct kvm_sev_cmd cmd = {.id = id, .data = (uintptr_t)data, .sev_fd = sev};
    return ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &cmd);
}

static void slot(uint32_t number, uint64_t gpa, uint64_t size, int file, uint64_t offset) {
    struct region region = {number, file < 0 ? 0 : MEMFD_SLOT, gpa, size, (uintptr_t)memory, offset, file, 0, {0}};
    if (ioctl(vm, SET_REGION, &region)) perror("slot");
}

static void guest(int slots) { /* A page each, with a gap after it, and a last slot without private memory. */
    uint64_t init[8] = {0};
    struct memfd wanted = {.size = slots * PAGE};
    struct attributes all = {0, 1 << 30, PRIVATE, 0};
    vm = ioctl(kvm, KVM_CREATE_VM, SNP_VM);
    command(INIT2, init);
    int file = ioctl(vm, CREATE_MEMFD, &wanted);
    for (int i = 0; i < slots; i++) slot(i, 2 * i * PAGE, PAGE, file, i * PAGE);
    slot(slots, 2 * slots * PAGE, PAGE, -1, 0);
    if (ioctl(vm, SET_ATTRIBUTES, &all)) perror("attributes");
}

static void update(const char *what, uint64_t gfn, void *from, uint64_t len) {
    struct update update = {.gfn = gfn, .address = (uintptr_t)from, .len = len, .type = NORMAL};
    int done = command(UPDATE, &update);
    printf("%s: %s, %d bytes left\n", what, done ? strerror(errno) : "ok", (int)update.len);
}

static void *make_vcpu(void *barrier) {
    pthread_barrier_wait(barrier);
    if (ioctl(vm, KVM_CREATE_VCPU, 0) < 0) perror("vCPU");
    return 0;
}

int main(void) {
    enum { SLOTS = 400, ROUNDS = 5 };
    struct attributes shared = {2 * PAGE, PAGE, 0, 0};
    struct start start = {.policy = 0x30000};
    pthread_barrier_t barrier;
    pthread_t thread;
    kvm = open("/dev/kvm", O_RDWR), sev = open("/dev/sev", O_RDWR);
    memory = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(memory + PAGE, PAGE, PROT_NONE);

    guest(2);
    ioctl(vm, SET_ATTRIBUTES, &shared);
    command(START, &start);
    update("no slot", 1, memory, PAGE);
    update("a slot of shared memory alone", 4, memory, PAGE);
    update("a shared page", 2, memory, PAGE);
    update("no source", 0, memory + PAGE, PAGE);
    update("no length", 0, memory, 0);
    update("beyond the slot", 0, memory, 2 * PAGE);
    update("again", 0, memory, PAGE);

    pthread_barrier_init(&barrier, 0, 2);
    for (int i = 0; i < ROUNDS; i++) {
        guest(SLOTS);
        pthread_create(&thread, 0, make_vcpu, &barrier);
        pthread_barrier_wait(&barrier);
        command(START, &start);
        update("meanwhile", 2 * (SLOTS - 1), memory, PAGE);
        pthread_join(thread, 0);
    }
    return 0;
}
