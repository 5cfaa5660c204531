/* The loop around KVM_RUN (Linux Documentation/virt/kvm/api.rst): what leaves the guest for a port or an address goes to
   Python's devices, one call for each access, and everything else ends the loop. */

#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define EXPORT __attribute__((visibility("default")))
#define KVM_RUN 0xae80
enum { SYS_IOCTL = 16 };
enum { EXIT_UNKNOWN = 0, EXIT_IO = 2, EXIT_MMIO = 6 };
enum { IO_IN = 0 };

/* The part of struct kvm_run that this file knows. */
struct run {
    u8 request_interrupt_window, immediate_exit, padding[6];
    u32 exit_reason;
    u8 state[20];
    union {
        struct { u8 direction, size; u16 port; u32 count; u64 data_offset; } io;
        struct { u64 address; u8 data[8]; u32 size; u8 is_write; } mmio;
    };
};
_Static_assert(__builtin_offsetof(struct run, io) == 32, "struct kvm_run");

/* Mirrored by casemate.host.kvm.run_loop. */
struct loop {
    struct run *run;
    const u32 *ring; /* index of the oldest coalesced write, then the one behind the newest */
    u64 (*read_port)(u32 port, u32 size);
    void (*write_port)(u32 port, u32 size, u32 value);
    u64 (*read_mmio)(u64 address, u32 size);
    void (*write_mmio)(u64 address, u32 size, u64 value);
    void (*deliver_coalesced)(void);
    u64 runs;     /* how often KVM_RUN was called */
    u64 failed;   /* a device raised something: the loop ends */
};

EXPORT u64 loop_size(void) { return sizeof(struct loop); }

static long run_guest(int fd) {
    long result;
    register long argument __asm__("rdx") = 0;
    __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_IOCTL), "D"((long)fd), "S"((long)KVM_RUN), "r"(argument)
                     : "rcx", "r11", "memory");
    return result;
}

static u64 get(const u8 *at, u32 size) {
    u64 value = 0;
    for (u32 i = 0; i < size; i++) value |= (u64)at[i] << 8 * i;
    return value;
}

static void put(u8 *at, u32 size, u64 value) {
    for (u32 i = 0; i < size; i++) at[i] = (u8)(value >> 8 * i);
}

static void access_port(struct loop *l) {
    struct run *run = l->run;
    u8 *data = (u8 *)run + run->io.data_offset;
    u32 size = run->io.size, port = run->io.port, is_in = run->io.direction == IO_IN;
    for (u32 left = run->io.count; left && !l->failed; left--, data += size) {
        if (is_in) put(data, size, l->read_port(port, size));
        else l->write_port(port, size, (u32)get(data, size));
    }
}

static void access_memory(struct loop *l) {
    struct run *run = l->run;
    u32 size = run->mmio.size > 8 ? 8 : run->mmio.size;
    if (run->mmio.is_write) l->write_mmio(run->mmio.address, size, get(run->mmio.data, size));
    else put(run->mmio.data, size, l->read_mmio(run->mmio.address, size));
}

/* Until KVM_RUN fails (the negative errno) or ends with another reason (that), or a device raised something (0). */
EXPORT long run_loop(struct loop *l, int fd) {
    while (!l->failed) {
        l->run->exit_reason = EXIT_UNKNOWN; /* after a failure it would be the last one's */
        l->runs++;
        long result = run_guest(fd);
        /* Made before whatever this exit is about. */
        if (__atomic_load_n(&l->ring[0], __ATOMIC_ACQUIRE) != __atomic_load_n(&l->ring[1], __ATOMIC_ACQUIRE)) {
            l->deliver_coalesced();
            if (l->failed) break;
        }
        if (result < 0) return result;
        switch (l->run->exit_reason) {
        case EXIT_IO: access_port(l); break;
        case EXIT_MMIO: access_memory(l); break;
        default: return l->run->exit_reason;
        }
    }
    return 0;
}
