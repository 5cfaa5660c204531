"""Numbers of KVM's capabilities (Linux include/uapi/linux/kvm.h)."""

from __future__ import annotations

from enum import IntEnum


class Capability(IntEnum):
    """What KVM_CHECK_EXTENSION is asked for. Names are the header's, without ``KVM_CAP_``."""

    IRQCHIP = 0
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    COALESCED_MMIO = 15
    IRQ_ROUTING = 25
    IRQFD = 32
    PIT2 = 33
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    MAX_VCPUS = 66
    READONLY_MEM = 81
    X86_SMM = 117
    MULTI_ADDRESS_SPACE = 118
    SPLIT_IRQCHIP = 121
    IMMEDIATE_EXIT = 136
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189
    EXIT_HYPERCALL = 201
    SYS_ATTRIBUTES = 209
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
