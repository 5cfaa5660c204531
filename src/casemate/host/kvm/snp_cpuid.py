"""CPUID of an SNP guest's vCPU, as far as its firmware takes it (AMD 56860, SNP_LAUNCH_UPDATE, CPUID page)."""

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
