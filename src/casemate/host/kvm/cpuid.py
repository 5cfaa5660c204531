"""The CPUID leaves of one vCPU, out of what KVM supports (Intel SDM volume 2, CPUID; Linux api.rst)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from casemate.abi.kvm.structs import CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry2
from casemate.abi.sev.snp_pages import (
    MAX_CPUID_ENTRIES,
    REFUSED_FEATURES,
    XSAVE_LEAF,
    XSAVE_LEGACY_SIZE,
    CpuidPage,
)
from casemate.errors import UnsupportedError

_HTT = 1 << 28
"""Of leaf 1, EDX: the package has more than one logical processor."""
_THREADS, _CORES = 1, 2
"""Types of levels in the topology leaves."""
_AMD_SIZES = 0x80000008

_FEATURES, _TOPOLOGY, _TOPOLOGY_V2, _AMD_TOPOLOGY = 0x1, 0xB, 0x1F, 0x8000001E


def cpuid_of_vcpu(supported: Iterable[CpuidEntry2], apic_id: int, count: int = 1) -> list[CpuidEntry2]:
    """Copies of ``supported`` that name ``apic_id``, one of ``count`` cores, where KVM leaves the host's."""
    return [_of_vcpu(CpuidEntry2.from_bytes(entry), apic_id, count) for entry in supported]


def without_refused(entries: Iterable[CpuidEntry2]) -> list[CpuidEntry2]:
    """Copies for an SNP guest: without what its firmware refuses."""

    found = [CpuidEntry2.from_bytes(entry) for entry in entries]
    for entry in found:
        for (function, index, register), mask in REFUSED_FEATURES.items():
            if (entry.function, entry.index) == (function, index):
                setattr(entry, register, getattr(entry, register) & ~mask)
    return found


def snp_table(entries: Sequence[CpuidEntry2]) -> CpuidPage:
    """The table of an SNP guest with this CPUID. Raises UnsupportedError if it is too long."""

    if len(entries) > MAX_CPUID_ENTRIES:
        cause = f"{len(entries)} CPUID leaves, an SNP guest is told {MAX_CPUID_ENTRIES} at most"
        raise UnsupportedError(cause, "use a host with a smaller CPUID")
    table = CpuidPage(count=len(entries))
    for entry, known in zip(table.entries, entries, strict=False):
        entry.eax_in = known.function
        entry.ecx_in = known.index if known.flags & CPUID_FLAG_SIGNIFICANT_INDEX else 0
        for register in ("eax", "ebx", "ecx", "edx"):
            setattr(entry, register, getattr(known, register))
        if known.function == XSAVE_LEAF and known.index in (0, 1):
            entry.ebx, entry.xcr0_in = XSAVE_LEGACY_SIZE, 1
    return table


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
