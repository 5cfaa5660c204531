"""The CPUID leaves of one vCPU, out of what KVM supports (Intel SDM volume 2, CPUID; Linux api.rst)."""

from __future__ import annotations

from collections.abc import Iterable

from casemate.abi.kvm.structs import CpuidEntry2

_HTT = 1 << 28
"""Of leaf 1, EDX: the package has more than one logical processor."""
_THREADS, _CORES = 1, 2
"""Types of levels in the topology leaves."""
_AMD_SIZES = 0x80000008

_FEATURES, _TOPOLOGY, _TOPOLOGY_V2, _AMD_TOPOLOGY = 0x1, 0xB, 0x1F, 0x8000001E


def cpuid_of_vcpu(supported: Iterable[CpuidEntry2], apic_id: int, count: int = 1) -> list[CpuidEntry2]:
    """Copies of ``supported`` that name ``apic_id``, one of ``count`` cores, where KVM leaves the host's."""
    return [_of_vcpu(CpuidEntry2.from_bytes(entry), apic_id, count) for entry in supported]


def _of_vcpu(entry: CpuidEntry2, apic_id: int, count: int) -> CpuidEntry2:
    bits = (count - 1).bit_length()
    if entry.function == _FEATURES:
        entry.ebx = entry.ebx & 0xFF00 | (apic_id & 0xFF) << 24 | min(1 << bits, 0xFF) << 16
        entry.edx = entry.edx & ~_HTT | (_HTT if count > 1 else 0)
    elif entry.function in (_TOPOLOGY, _TOPOLOGY_V2):
        levels = {0: (0, 1, _THREADS << 8), 1: (bits, count, _CORES << 8 | 1)}
        entry.eax, entry.ebx, entry.ecx = levels.get(entry.index, (0, 0, entry.index))
        entry.edx = apic_id
    elif entry.function == _AMD_SIZES:
        entry.ecx = bits << 12 | min(count - 1, 0xFF)
    elif entry.function == _AMD_TOPOLOGY:
        entry.eax = apic_id
    return entry
