"""What KVM_CHECK_EXTENSION answers, by VM type and era (Linux arch/x86/kvm/x86.c, kvm_vm_ioctl_check_extension)."""

from __future__ import annotations

from casemate.abi.kernel_eras import ERAS, KernelEra
from casemate.abi.kvm.capabilities import Capability
from casemate.abi.kvm.structs import MEMORY_ATTRIBUTE_PRIVATE
from casemate.abi.kvm.vm_types import VmType
from casemate.host.model.vm import MAX_VCPUS

SLOTS = 509
COALESCED_PAGE = 2
"""Which page of the vCPU's mapping has the ring of coalesced writes."""
DISABLE_HLT, _DISABLE_PAUSE = 1 << 1, 1 << 2
DEBUG_CONTROL = 1 | 1 << 1 | 1 << 16 | 1 << 17 | 1 << 20
"""KVM_GUESTDBG_ENABLE, SINGLESTEP, USE_SW_BP, USE_HW_BP and BLOCKIRQ."""
CLOCK_REALTIME, CLOCK_FLAGS = 1 << 2, 1 << 1 | 1 << 2 | 1 << 3
"""KVM_CLOCK_REALTIME, and with it KVM_CLOCK_TSC_STABLE and KVM_CLOCK_HOST_TSC."""
FIX_HYPERCALL = 1 << 5
"""KVM_X86_QUIRK_FIX_HYPERCALL_INSN."""
VCPU_IDS = 4 * MAX_VCPUS
"""Four numbers for each possible vCPU, as KVM_VCPU_ID_RATIO says."""
MAP_GPA_RANGE_EXITS = 1 << 12
"""KVM_HC_MAP_GPA_RANGE."""
_FIXED: dict[int, int] = {
    **dict.fromkeys(
        (
            Capability.IRQCHIP, Capability.HLT, Capability.USER_MEMORY, Capability.SET_TSS_ADDR,
            Capability.EXT_CPUID, Capability.MP_STATE, Capability.SYNC_MMU,
            Capability.DESTROY_MEMORY_REGION_WORKS, Capability.SET_GUEST_DEBUG, Capability.IRQ_INJECT_STATUS,
            Capability.JOIN_MEMORY_REGIONS_WORKS, Capability.IRQFD, Capability.PIT2, Capability.PIT_STATE2,
            Capability.IOEVENTFD, Capability.SET_IDENTITY_MAP_ADDR, Capability.INTERNAL_ERROR_DATA,
            Capability.VCPU_EVENTS, Capability.DEBUGREGS, Capability.X86_ROBUST_SINGLESTEP, Capability.XSAVE,
            Capability.XCRS, Capability.GET_TSC_KHZ, Capability.SIGNAL_MSI,
            Capability.CHECK_EXTENSION_VM, Capability.IOEVENTFD_ANY_LENGTH,
            Capability.IMMEDIATE_EXIT, Capability.GET_MSR_FEATURES, Capability.SYS_ATTRIBUTES,
            Capability.MSR_PLATFORM_INFO, Capability.VCPU_ATTRIBUTES, Capability.ENFORCE_PV_FEATURE_CPUID,
            Capability.COALESCED_PIO, Capability.SPLIT_IRQCHIP, Capability.TSC_DEADLINE_TIMER,
            Capability.BINARY_STATS_FD,
        ),
        1,
    ),
    Capability.NR_MEMSLOTS: SLOTS,
    Capability.NR_VCPUS: MAX_VCPUS,
    Capability.MAX_VCPUS: MAX_VCPUS,
    Capability.MAX_VCPU_ID: VCPU_IDS,
    Capability.IRQ_ROUTING: 1024,
    Capability.MCE: 32,
    Capability.COALESCED_MMIO: COALESCED_PAGE,
    Capability.X86_DISABLE_EXITS: DISABLE_HLT | _DISABLE_PAUSE,
    Capability.DISABLE_QUIRKS2: FIX_HYPERCALL,
    Capability.ADJUST_CLOCK: CLOCK_FLAGS,
    Capability.SET_GUEST_DEBUG2: DEBUG_CONTROL,
}  # fmt: skip
"""Everything else is 0."""


class Capabilities:
    """One modelled kernel's answers, and which were asked for."""

    def __init__(self, era: KernelEra, vm_types: frozenset[VmType]) -> None:
        self._era = era
        self._vm_types = vm_types
        self.asked: dict[tuple[str, int], int] = {}
        """The answer by who was asked (``system`` or the name of the VM's type) and the number."""

    def answer(self, number: int, vm_type: VmType | None = None) -> int:
        """To the system where there is no type, else to a VM of that type."""
        value = self._value(number, vm_type)
        self.asked["system" if vm_type is None else vm_type.kernel_name, number] = value
        return value

    def _value(self, number: int, vm_type: VmType | None) -> int:
        era = self._era
        if number == Capability.READONLY_MEM:
            asked_of_vm = vm_type is not None and era.answers_readonly_memory(vm_type)
            return int(era.system_readonly_memory if vm_type is None else asked_of_vm)
        if number == Capability.VM_TYPES:
            # One type is not worth the capability: it came with the second.
            return sum(1 << each for each in self._vm_types) if len(self._vm_types) > 1 else 0
        has_private = VmType.SW_PROTECTED in self._vm_types and vm_type in (
            None,
            VmType.SW_PROTECTED,
            VmType.SNP,
        )
        if number == Capability.MEMORY_ATTRIBUTES:
            return MEMORY_ATTRIBUTE_PRIVATE if has_private else 0
        if number == Capability.GUEST_MEMFD:
            return int(has_private)
        if number == Capability.EXIT_HYPERCALL:
            return MAP_GPA_RANGE_EXITS
        if number == Capability.PRE_FAULT_MEMORY:
            return int(ERAS.index(era.name) >= ERAS.index("linux-6.11"))
        if number in (Capability.USER_MEMORY2, Capability.MEMORY_FAULT_INFO):
            return int(VmType.SW_PROTECTED in era.vm_types)
        return _FIXED.get(number, 0)
