"""Numbers of KVM's capabilities (Linux include/uapi/linux/kvm.h)."""

from __future__ import annotations

from enum import IntEnum


class Capability(IntEnum):
    """What KVM_CHECK_EXTENSION is asked for. Names are the header's, without ``KVM_CAP_``."""

    IRQCHIP = 0
    HLT = 1
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    COALESCED_MMIO = 15
    SYNC_MMU = 16
    DESTROY_MEMORY_REGION_WORKS = 21
    SET_GUEST_DEBUG = 23
    IRQ_ROUTING = 25
    IRQ_INJECT_STATUS = 26
    JOIN_MEMORY_REGIONS_WORKS = 30
    MCE = 31
    IRQFD = 32
    PIT2 = 33
    PIT_STATE2 = 35
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    ADJUST_CLOCK = 39
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    DEBUGREGS = 50
    X86_ROBUST_SINGLESTEP = 51
    XSAVE = 55
    XCRS = 56
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    SIGNAL_MSI = 77
    TSC_DEADLINE_TIMER = 72
    READONLY_MEM = 81
    IRQFD_RESAMPLE = 82
    EXT_EMUL_CPUID = 95
    CHECK_EXTENSION_VM = 105
    X86_SMM = 117
    MULTI_ADDRESS_SPACE = 118
    SPLIT_IRQCHIP = 121
    IOEVENTFD_ANY_LENGTH = 122
    VCPU_ATTRIBUTES = 127
    MAX_VCPU_ID = 128
    IMMEDIATE_EXIT = 136
    X86_DISABLE_EXITS = 143
    GET_MSR_FEATURES = 153
    MSR_PLATFORM_INFO = 159
    COALESCED_PIO = 162
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189
    ENFORCE_PV_FEATURE_CPUID = 190
    EXIT_HYPERCALL = 201
    SREGS2 = 200
    SYS_ATTRIBUTES = 209
    DISABLE_QUIRKS2 = 213
    XSAVE2 = 208
    USER_MEMORY2 = 231
    MEMORY_FAULT_INFO = 232
    MEMORY_ATTRIBUTES = 233
    GUEST_MEMFD = 234
    VM_TYPES = 235
    PRE_FAULT_MEMORY = 236
    X86_APIC_BUS_CYCLES_NS = 237
    X86_GUEST_MODE = 238

    @property
    def kernel_name(self) -> str:
        """As the header spells it."""
        return f"KVM_CAP_{self.name}"
