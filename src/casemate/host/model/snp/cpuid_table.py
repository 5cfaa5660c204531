"""What the modelled firmware takes as a guest's CPUID table (AMD 56860, SNP_LAUNCH_UPDATE; QEMU target/i386/sev.c).

A feature that KVM can offer and hardware cannot keep inside an SNP guest is refused; the firmware hands the table back
as it would take it.
"""

from __future__ import annotations

from casemate.abi.sev.snp_pages import (
    REFUSED_FEATURES,
    XSAVE_LEAF,
    XSAVE_LEGACY_SIZE,
    CpuidFunction,
    CpuidPage,
)
from casemate.host.model.cpu.cpuid import ADDRESS_SIZES, ENCRYPTION, CpuidTable, below_c_bit

_ADDED = {(ENCRYPTION, 0): 1 << 4, (XSAVE_LEAF, 1): 1 << 1}
"""Bits of EAX by leaf and subleaf: SNP, and XSAVEC, which every such processor has and Linux insists on."""
_XSAVE = 0b11 << 26
"""XSAVE and OSXSAVE in ECX: hidden, for the engine has no XSAVEC, which Linux would go on to use."""
_BASIC = tuple(range(0x11))
_EXTENDED = (*range(0x80000000, 0x80000009), 0x8000001F)
_INDEXED = {0x7: (0,), 0xD: (0, 1)}


def guest_table(native: CpuidTable) -> CpuidPage:
    """What the modelled CPU says of itself to an SNP guest, as far as the firmware takes it."""
    table = CpuidPage()
    for leaf in (*_BASIC, *_EXTENDED):
        for subleaf in _INDEXED.get(leaf, (0,)):
            answer = native.answer(leaf, subleaf)
            if any(answer):
                entry = table.entries[table.count]
                entry.eax_in, entry.ecx_in = leaf, subleaf
                entry.eax, entry.ebx, entry.ecx, entry.edx = answer
                entry.eax |= _ADDED.get((leaf, subleaf), 0)
                entry.ecx &= ~(_XSAVE if leaf == 1 else 0)
                entry.eax = below_c_bit(entry.eax) if leaf == ADDRESS_SIZES else entry.eax
                entry.xcr0_in = 1 if leaf == XSAVE_LEAF else 0
                table.count += 1
    return correct_table(table)


def correct_table(table: CpuidPage) -> CpuidPage:
    """The table as the firmware would take it."""
    corrected = CpuidPage.from_bytes(table.to_bytes())
    for entry in corrected.used():
        for (leaf, subleaf, register), mask in REFUSED_FEATURES.items():
            if (entry.eax_in, entry.ecx_in) == (leaf, subleaf):
                setattr(entry, register, getattr(entry, register) & ~mask)
        if _is_xsave_size(entry):
            entry.ebx = XSAVE_LEGACY_SIZE
    return corrected


def as_found(contents: bytes) -> bytes:
    """A page that was launched, as the guest finds it on the modelled CPU; no digest has it.

    A monitor's table may offer XSAVE, and more address bits than there are below the C-bit.
    """
    table = CpuidPage.from_bytes(contents)
    for entry in table.used():
        if entry.eax_in == 1:
            entry.ecx &= ~_XSAVE
        elif entry.eax_in == ADDRESS_SIZES:
            entry.eax = below_c_bit(entry.eax)
    return table.to_bytes()


def _is_xsave_size(entry: CpuidFunction) -> bool:
    return entry.eax_in == XSAVE_LEAF and entry.ecx_in in (0, 1) and (entry.xcr0_in, entry.xss_in) == (1, 0)
