"""KVM's ioctl numbers on x86-64 (Linux include/uapi/linux/kvm.h, asm-generic/ioctl.h)."""

from __future__ import annotations

from enum import IntEnum

_KVMIO = 0xAE
_WRITE, _READ = 1 << 30, 2 << 30


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def _iow(number: int, size: int) -> int:
    return _WRITE | size << 16 | _io(number)


def _ior(number: int, size: int) -> int:
    return _READ | size << 16 | _io(number)


def _iowr(number: int, size: int) -> int:
    return _WRITE | _READ | size << 16 | _io(number)


class Ioctl(IntEnum):
    """Names are the header's, without ``KVM_``; sizes are of the structs, or of their heads where they have a tail."""

    GET_API_VERSION = _io(0x00)
    CREATE_VM = _io(0x01)
    GET_MSR_INDEX_LIST = _iowr(0x02, 4)
    CHECK_EXTENSION = _io(0x03)
    GET_VCPU_MMAP_SIZE = _io(0x04)
    GET_SUPPORTED_CPUID = _iowr(0x05, 8)
    GET_EMULATED_CPUID = _iowr(0x09, 8)
    GET_MSR_FEATURE_INDEX_LIST = _iowr(0x0A, 4)
    X86_GET_MCE_CAP_SUPPORTED = _ior(0x9D, 8)

    CREATE_VCPU = _io(0x41)
    GET_DIRTY_LOG = _iow(0x42, 16)
    SET_USER_MEMORY_REGION = _iow(0x46, 32)
    SET_NR_MMU_PAGES = _io(0x44)
    SET_TSS_ADDR = _io(0x47)
    SET_IDENTITY_MAP_ADDR = _iow(0x48, 8)
    SET_USER_MEMORY_REGION2 = _iow(0x49, 160)
    CREATE_IRQCHIP = _io(0x60)
    IRQ_LINE = _iow(0x61, 8)
    GET_IRQCHIP = _iowr(0x62, 520)
    SET_IRQCHIP = _ior(0x63, 520)
    IRQ_LINE_STATUS = _iowr(0x67, 8)
    REGISTER_COALESCED_MMIO = _iow(0x67, 16)
    UNREGISTER_COALESCED_MMIO = _iow(0x68, 16)
    SET_GSI_ROUTING = _iow(0x6A, 8)
    REINJECT_CONTROL = _io(0x71)
    IRQFD = _iow(0x76, 32)
    CREATE_PIT2 = _iow(0x77, 64)
    SET_BOOT_CPU_ID = _io(0x78)
    IOEVENTFD = _iow(0x79, 64)
    SET_CLOCK = _iow(0x7B, 48)
    GET_CLOCK = _ior(0x7C, 48)
    CLEAR_DIRTY_LOG = _iowr(0xC0, 24)
    GET_PIT2 = _ior(0x9F, 112)
    SET_PIT2 = _iow(0xA0, 112)
    ENABLE_CAP = _iow(0xA3, 104)
    SIGNAL_MSI = _iow(0xA5, 32)
    MEMORY_ENCRYPT_OP = _iowr(0xBA, 8)
    MEMORY_ENCRYPT_REG_REGION = _ior(0xBB, 16)
    MEMORY_ENCRYPT_UNREG_REGION = _ior(0xBC, 16)
    X86_SET_MSR_FILTER = _iow(0xC6, 392)
    SET_MEMORY_ATTRIBUTES = _iow(0xD2, 32)
    CREATE_GUEST_MEMFD = _iowr(0xD4, 64)
    CREATE_DEVICE = _iowr(0xE0, 12)
    SET_DEVICE_ATTR = _iow(0xE1, 24)
    GET_DEVICE_ATTR = _iow(0xE2, 24)
    HAS_DEVICE_ATTR = _iow(0xE3, 24)

    RUN = _io(0x80)
    GET_REGS = _ior(0x81, 144)
    SET_REGS = _iow(0x82, 144)
    GET_SREGS = _ior(0x83, 312)
    SET_SREGS = _iow(0x84, 312)
    TRANSLATE = _iowr(0x85, 24)
    INTERRUPT = _iow(0x86, 4)
    GET_MSRS = _iowr(0x88, 8)
    SET_MSRS = _iow(0x89, 8)
    SET_SIGNAL_MASK = _iow(0x8B, 4)
    TPR_ACCESS_REPORTING = _iowr(0x92, 40)
    SET_VAPIC_ADDR = _iow(0x93, 8)
    X86_SETUP_MCE = _iow(0x9C, 8)
    KVMCLOCK_CTRL = _io(0xAD)
    GET_XSAVE2 = _ior(0xCF, 4096)
    GET_STATS_FD = _io(0xCE)
    GET_FPU = _ior(0x8C, 416)
    SET_FPU = _iow(0x8D, 416)
    GET_LAPIC = _ior(0x8E, 1024)
    SET_LAPIC = _iow(0x8F, 1024)
    SET_CPUID2 = _iow(0x90, 8)
    GET_CPUID2 = _iowr(0x91, 8)
    GET_MP_STATE = _ior(0x98, 4)
    SET_MP_STATE = _iow(0x99, 4)
    NMI = _io(0x9A)
    SET_GUEST_DEBUG = _iow(0x9B, 72)
    GET_VCPU_EVENTS = _ior(0x9F, 64)
    SET_VCPU_EVENTS = _iow(0xA0, 64)
    GET_DEBUGREGS = _ior(0xA1, 128)
    SET_DEBUGREGS = _iow(0xA2, 128)
    SET_TSC_KHZ = _io(0xA2)
    GET_TSC_KHZ = _io(0xA3)
    GET_XSAVE = _ior(0xA4, 4096)
    SET_XSAVE = _iow(0xA5, 4096)
    GET_XCRS = _ior(0xA6, 392)
    SET_XCRS = _iow(0xA7, 392)
    SMI = _io(0xB7)
    GET_SREGS2 = _ior(0xCC, 320)
    SET_SREGS2 = _iow(0xCD, 320)
    PRE_FAULT_MEMORY = _iowr(0xD5, 64)

    @property
    def kernel_name(self) -> str:
        """As the header spells it."""
        return f"KVM_{self.name}"
