"""The CPUID leaves of one vCPU, out of what KVM supports (Intel SDM volume 2, CPUID; Linux api.rst)."""

from __future__ import annotations

from collections.abc import Iterable

from casemate.abi.kvm.structs import CpuidEntry2

_FEATURES, _TOPOLOGY, _TOPOLOGY_V2, _AMD_TOPOLOGY = 0x1, 0xB, 0x1F, 0x8000001E


def cpuid_of_vcpu(supported: Iterable[CpuidEntry2], apic_id: int) -> list[CpuidEntry2]:
    """Copies of ``supported`` that name ``apic_id``, and one logical processor, where KVM leaves the host's."""
    return [_of_vcpu(CpuidEntry2.from_bytes(entry), apic_id) for entry in supported]


def _of_vcpu(entry: CpuidEntry2, apic_id: int) -> CpuidEntry2:
    if entry.function == _FEATURES:
        entry.ebx = entry.ebx & 0xFF00 | apic_id << 24 | 1 << 16
    elif entry.function in (_TOPOLOGY, _TOPOLOGY_V2):
        entry.edx = apic_id
    elif entry.function == _AMD_TOPOLOGY:
        entry.eax = apic_id
    return entry
