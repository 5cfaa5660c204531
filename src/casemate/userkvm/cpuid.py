"""What the modelled KVM supports of CPUID, and what one vCPU was given (Linux api.rst, KVM_GET_SUPPORTED_CPUID)."""

from __future__ import annotations

from collections.abc import Iterable

from casemate.abi.kvm.structs import CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry2
from casemate.host.model.cpu.cpuid import (
    ADDRESS_SIZES,
    C_BIT,
    ENCRYPTION,
    MAX_EXTENDED,
    below_c_bit,
    native_leaf,
)
from casemate.host.model.cpu.processor import Leaf

_FEATURES = 1
_APIC, _HYPERVISOR = 1 << 9, 1 << 31
_X2APIC, _TSC_DEADLINE, _OSXSAVE, _MONITOR = 1 << 21, 1 << 24, 1 << 27, 1 << 3
"""KVM offers the second by KVM_CAP_TSC_DEADLINE_TIMER."""
_SUBLEAVES = {4: 4, 7: 1, 0xB: 2, 0xD: 2}
_LEAVES = (*range(0x12), *range(0x80000000, 0x80000009), ENCRYPTION)
_EXTENDED_STATE, _XSAVEC = 0xD, 1 << 1
"""XSAVEC, which the engine has not, every processor for SNP guests has, and Linux insists on in their CPUID table."""
_AMD_FEATURES, _SVM = 0x80000001, 1 << 2
"""There is no nested virtualization."""
_MORE_FEATURES, _BMI2, _ADX = 7, 1 << 8, 1 << 19
"""Of these the engine executes SHLX and ADCX only while CR4.OSFXSR is set, and boot loaders execute them before."""
_SIGNATURE, _KVM_FEATURES = 0x40000000, 0x40000001
_PV_UNHALT = 1 << 7
_KVM = (_KVM_FEATURES, 0x4B4D564B, 0x564B4D56, 0x4D)
"""``KVMKVMKVM``."""
CLOCK, CLOCK2 = 1 << 0, 1 << 3
_NO_IO_DELAY, _STABLE_CLOCK = 1 << 1, 1 << 24
"""Paravirtual features: the clock by its old registers and by its new ones, on all vCPUs alike; ports need no pause."""
SUPPORTED_XCR0 = native_leaf(_EXTENDED_STATE, 0).eax
"""What XSAVE saves: x87, SSE and, where the engine has it, the keys of protection (Intel SDM volume 1, 13.2)."""
ENCRYPTION_LEAF = Leaf(0b11010, C_BIT | 1 << 6, 15, 1)
"""SEV, SEV-ES and SNP; one physical bit less; 15 guests; the first ASID of SEV alone."""


def supported(*, has_snp: bool = False) -> list[CpuidEntry2]:
    """The leaves of an AMD processor as the engine has it, with a local APIC and a hypervisor.

    ``has_snp``: for a monitor that has an SNP VM, whose guest never finds XSAVE, though it finds XSAVEC.
    """
    found = []
    for leaf in _LEAVES:
        for index in range(_SUBLEAVES.get(leaf, 1)):
            eax, ebx, ecx, edx = native_leaf(leaf, index)
            if leaf == _FEATURES:
                ecx = ecx & ~(_X2APIC | _TSC_DEADLINE | _OSXSAVE | _MONITOR) | _HYPERVISOR
                edx |= _APIC
            elif (leaf, index) == (_MORE_FEATURES, 0):
                ebx &= ~(_BMI2 | _ADX)
            elif leaf == _AMD_FEATURES:
                ecx &= ~_SVM
            elif leaf == MAX_EXTENDED:
                eax = max(eax, ENCRYPTION)
            elif leaf == ADDRESS_SIZES:
                eax = below_c_bit(eax)
            elif leaf == ENCRYPTION:
                eax, ebx, ecx, edx = ENCRYPTION_LEAF
            elif (leaf, index) == (_EXTENDED_STATE, 1) and has_snp:
                eax |= _XSAVEC
            flags = CPUID_FLAG_SIGNIFICANT_INDEX if leaf in _SUBLEAVES else 0
            found.append(CpuidEntry2(leaf, index, flags, eax, ebx, ecx, edx))
    found.append(CpuidEntry2(_SIGNATURE, 0, 0, *_KVM))
    found.append(CpuidEntry2(_KVM_FEATURES, 0, 0, CLOCK | CLOCK2 | _NO_IO_DELAY | _STABLE_CLOCK))
    return found


class VcpuCpuid:
    """One vCPU's table (``casemate.host.model.cpu.cpuid.CpuidTable``), empty at first."""

    def __init__(self) -> None:
        self.entries: list[CpuidEntry2] = []
        self._leaves: dict[tuple[int, int | None], Leaf] = {}
        self.is_confidential = False
        """The C-bit is no part of an address."""
        self.never_halts = False
        """HLT does not leave the guest (KVM_X86_DISABLE_EXITS_HLT): then there is nobody to be kicked out of it."""

    def of_another(self) -> VcpuCpuid:
        """For another vCPU of the same guest."""
        found = VcpuCpuid()
        found.is_confidential, found.never_halts = self.is_confidential, self.never_halts
        return found

    def set(self, entries: Iterable[CpuidEntry2]) -> None:
        """KVM_SET_CPUID2."""
        self.entries = list(entries)
        self._leaves = {}
        signature = next((entry for entry in self.entries if entry.function == _SIGNATURE), None)
        is_kvm = signature is not None and (signature.ebx, signature.ecx, signature.edx) == _KVM[1:]
        for entry in self.entries:
            if entry.function == _KVM_FEATURES and is_kvm and self.never_halts:
                entry.eax &= ~_PV_UNHALT
            index = entry.index if entry.flags & CPUID_FLAG_SIGNIFICANT_INDEX else None
            leaf = Leaf(entry.eax, entry.ebx, entry.ecx, entry.edx)
            self._leaves.setdefault((entry.function, index), leaf)

    @property
    def kvm_features(self) -> int:
        """Paravirtual features that the guest is told of."""
        return self.answer(_KVM_FEATURES, 0).eax

    def answer(self, leaf: int, index: int) -> Leaf:
        """Zeros for a leaf that is not there."""
        found = self._leaves.get((leaf, index)) or self._leaves.get((leaf, None))
        if found and self.is_confidential and leaf == ADDRESS_SIZES:
            return found._replace(eax=below_c_bit(found.eax))
        return found or Leaf(0, 0, 0, 0)
