"""What KVM did at which release, as one table with sources (Linux arch/x86/kvm, virt/kvm; see each row).

``seen`` says who watched a row happen: ``kvm_amd 6.1, 6.12, 7.3`` are Debian's kernels with emulated SVM, plain
guests only; ``source only`` means that nobody here did, for want of hardware.
"""

from typing import Any, NamedTuple

from casemate.abi.kvm.vm_types import VmType
from casemate.abi.kvm.write_outcome import WriteOutcome
from casemate.abi.sev.features import SevFeatures
from casemate.errors import SpecError

_SOURCE_ONLY = "source only"
_LAB = "kvm_amd 6.1, 6.12, 7.3"


class KernelEra(NamedTuple):
    """One release as this table has it; a test may ``_replace`` a field to see what depends on it."""

    name: str
    vm_types: frozenset[VmType]
    system_readonly_memory: bool
    open_readonly_memory: bool
    protected_readonly_memory: bool
    protected_readonly_slot: bool
    init2_vmsa_features: int
    legacy_vmsa_features: int
    init2_saves_fpu: bool
    open_write_to_readonly_slot: WriteOutcome
    protected_write_to_readonly_slot: WriteOutcome
    write_to_readonly_mapping: WriteOutcome
    launch_update_pins_for_writing: bool
    register_region_pins_for_writing: bool

    def answers_readonly_memory(self, vm_type: VmType) -> bool:
        """KVM_CHECK_EXTENSION(KVM_CAP_READONLY_MEM) on a VM of this type."""
        return self.protected_readonly_memory if vm_type in PROTECTED_TYPES else self.open_readonly_memory

    def takes_readonly_slot(self, vm_type: VmType) -> bool:
        """Whether KVM_SET_USER_MEMORY_REGION takes KVM_MEM_READONLY on a VM of this type."""
        return self.protected_readonly_slot if vm_type in PROTECTED_TYPES else self.open_readonly_memory


class Behaviour(NamedTuple):
    """One row: ``values`` by the first release that has them, the oldest first."""

    field: str
    what: str
    values: tuple[tuple[str, Any], ...]
    source: str
    seen: str

    def at(self, era: str) -> Any:
        """The value of this row in ``era``."""
        return [value for since, value in self.values if ERAS.index(since) <= ERAS.index(era)][-1]


ERAS = ("linux-6.1", "linux-6.6", "linux-6.8", "linux-6.10", "linux-6.11", "linux-6.16", "linux-6.18")
"""The oldest first."""

NEWEST = ERAS[-1]

PROTECTED_TYPES = frozenset({VmType.SEV_ES, VmType.SNP, VmType.TDX})
"""Types whose VMs have protected state from their creation on."""

_OLD_TYPES = frozenset({VmType.DEFAULT})
_PRIVATE_TYPES = _OLD_TYPES | {VmType.SW_PROTECTED}
_SEV_TYPES = _PRIVATE_TYPES | {VmType.SEV, VmType.SEV_ES}

BEHAVIOURS = (
    Behaviour(
        "vm_types", "types that KVM_CREATE_VM takes on an AMD host",
        (
            ("linux-6.1", _OLD_TYPES),
            ("linux-6.8", _PRIVATE_TYPES),
            ("linux-6.10", _SEV_TYPES),
            ("linux-6.11", _SEV_TYPES | {VmType.SNP}),
        ),
        "26c44aa9e076, 4f5defae7089 (Linux 6.10): KVM_SEV_INIT2 on types of its own", _SOURCE_ONLY,
    ),
    Behaviour(
        "system_readonly_memory", "KVM_CAP_READONLY_MEM asked of /dev/kvm",
        (("linux-6.1", True),),
        "arch/x86/kvm/x86.c, kvm_vm_ioctl_check_extension: without a VM the answer is always 1", _LAB,
    ),
    Behaviour(
        "open_readonly_memory", "KVM_CAP_READONLY_MEM of types without protected state, and such slots",
        (("linux-6.1", True),),
        "arch/x86/include/asm/kvm_host.h, kvm_arch_has_readonly_mem", _LAB,
    ),
    Behaviour(
        "protected_readonly_memory", "KVM_CAP_READONLY_MEM of types with protected state",
        (("linux-6.1", True), ("linux-6.11", False)),
        "d30d9ee94cc0 (Linux 6.11): Only advertise KVM_CAP_READONLY_MEM when supported by VM", _SOURCE_ONLY,
    ),
    Behaviour(
        "protected_readonly_slot", "a read-only slot in a VM of a type with protected state",
        (("linux-6.1", True), ("linux-6.11", False)),
        "66155de93bcf (Linux 6.11): Disallow read-only memslots for SEV-ES and SEV-SNP (and TDX)",
        _SOURCE_ONLY,
    ),
    Behaviour(
        "init2_vmsa_features", "VMSA features that KVM_SEV_INIT2 takes for a SEV-ES guest",
        (("linux-6.1", 0), ("linux-6.10", int(SevFeatures.DEBUG_SWAP))),
        "4dd5ecacb9a4 (Linux 6.10): debug-swap by vmsa_features bit 5 only", _SOURCE_ONLY,
    ),
    Behaviour(
        "legacy_vmsa_features", "VMSA features that KVM_SEV_ES_INIT sets by itself",
        (("linux-6.1", 0), ("linux-6.6", int(SevFeatures.DEBUG_SWAP)), ("linux-6.8", 0)),
        "d1f85fbe836e (Linux 6.6) sets debug-swap; 5abf6dceb066 (Linux 6.8) turns kvm_amd.debug_swap off",
        _SOURCE_ONLY,
    ),
    Behaviour(
        "init2_saves_fpu", "the x87 and SSE control words enter the save area after KVM_SEV_INIT2",
        (("linux-6.1", False), ("linux-6.10", True)),
        "eb4441864e03 (Linux 6.10): sync FPU and AVX state at LAUNCH_UPDATE_VMSA time", _SOURCE_ONLY,
    ),
    Behaviour(
        "open_write_to_readonly_slot", "a direct write of a plain or SEV guest to a read-only slot",
        (("linux-6.1", WriteOutcome.MMIO),),
        "Documentation/virt/kvm/api.rst, KVM_MEM_READONLY", f"{_LAB}; SEV: source only",
    ),
    Behaviour(
        "protected_write_to_readonly_slot", "a direct write of a SEV-ES guest to a read-only slot",
        (("linux-6.1", WriteOutcome.LIVELOCK),),
        "66155de93bcf: no MMIO SPTE, hence no #VC; the #NPF can be neither emulated nor reflected",
        _SOURCE_ONLY,
    ),
    Behaviour(
        "write_to_readonly_mapping", "a direct write to a slot over a mapping without PROT_WRITE",
        (("linux-6.1", WriteOutcome.EFAULT),),
        "arch/x86/kvm/mmu/mmu.c, kvm_handle_error_pfn", f"{_LAB}; SEV and SEV-ES: source only",
    ),
    Behaviour(
        "launch_update_pins_for_writing", "LAUNCH_UPDATE_DATA and LAUNCH_SECRET pin with FOLL_WRITE",
        (("linux-6.1", True),),
        "arch/x86/kvm/svm/sev.c, sev_pin_memory", _SOURCE_ONLY,
    ),
    Behaviour(
        "register_region_pins_for_writing", "KVM_MEMORY_ENCRYPT_REG_REGION pins with FOLL_WRITE",
        (("linux-6.1", True),),
        "arch/x86/kvm/svm/sev.c, sev_mem_enc_register_region; since 2026 FOLL_LONGTERM alone, in stable releases"
        " of any age (6.1.192 has it), so that no release tells",
        _SOURCE_ONLY,
    ),
)  # fmt: skip


def find_era(name: str) -> KernelEra:
    """The era called ``linux-6.18``, say. Raises SpecError if there is none."""
    if name not in ERAS:
        raise SpecError(f"no kernel era {name!r}", f"use one of {', '.join(ERAS)}")
    return KernelEra(name, **{behaviour.field: behaviour.at(name) for behaviour in BEHAVIOURS})
