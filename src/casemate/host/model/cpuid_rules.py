"""What the modelled firmware takes as a guest's CPUID table (AMD 56860, SNP_LAUNCH_UPDATE; QEMU target/i386/sev.c).

A feature that KVM can offer and hardware cannot keep inside an SNP guest is refused; the firmware hands the table back
as it would take it.
"""

from __future__ import annotations

from casemate.abi.sev.snp_pages import CpuidFunction, CpuidPage
from casemate.host.model.cpu.cpuid import ENCRYPTION, SevCpuid

_XSAVE_LEAF, _LEGACY_AREA = 0xD, 0x240
_REFUSED = {
    (0x1, 0, "ecx"): 1 << 24,  # TSC deadline timer
    (0x7, 0, "ebx"): 1 << 1,  # TSC_ADJUST
    (0x7, 0, "edx"): 0x3F << 26,  # SPEC_CTRL, STIBP, FLUSH_L1D, ARCH_CAPABILITIES, CORE_CAPABILITIES, SSBD
    (0x80000008, 0, "ebx"): 1 << 25,  # VIRT_SSBD
}


_SNP = 1 << 4
_BASIC = tuple(range(0x11))
_EXTENDED = (*range(0x80000000, 0x80000009), 0x8000001F)
_INDEXED = {0x7: (0,), 0xD: (0, 1)}


def guest_table() -> CpuidPage:
    """What the modelled CPU says of itself to an SNP guest, as far as the firmware takes it."""
    native = SevCpuid(sev_es=True)
    table = CpuidPage()
    for leaf in (*_BASIC, *_EXTENDED):
        for subleaf in _INDEXED.get(leaf, (0,)):
            answer = native.answer(leaf, subleaf)
            if any(answer):
                entry = table.entries[table.count]
                entry.eax_in, entry.ecx_in = leaf, subleaf
                entry.eax, entry.ebx, entry.ecx, entry.edx = answer
                entry.eax |= _SNP if leaf == ENCRYPTION else 0
                entry.xcr0_in = 1 if leaf == _XSAVE_LEAF else 0
                table.count += 1
    return correct_table(table)


def correct_table(table: CpuidPage) -> CpuidPage:
    """The table as the firmware would take it."""
    corrected = CpuidPage.from_bytes(table.to_bytes())
    for entry in corrected.used():
        for (leaf, subleaf, register), mask in _REFUSED.items():
            if (entry.eax_in, entry.ecx_in) == (leaf, subleaf):
                setattr(entry, register, getattr(entry, register) & ~mask)
        if _is_xsave_size(entry):
            entry.ebx = _LEGACY_AREA
    return corrected


def _is_xsave_size(entry: CpuidFunction) -> bool:
    return entry.eax_in == _XSAVE_LEAF and entry.ecx_in in (0, 1) and (entry.xcr0_in, entry.xss_in) == (1, 0)
