"""Which control registers KVM_SET_SREGS takes (Linux x86.c, kvm_is_valid_sregs; Intel SDM volume 3, 2.5)."""

from __future__ import annotations

from typing import Any

from casemate.abi.kvm.structs import CpuidEntry2, Sregs
from casemate.host.model.cpu.cpuid import C_BIT

_PE, _NW, _CD, _PG = 1 << 0, 1 << 29, 1 << 30, 1 << 31
_PAE, _LME, _LMA = 1 << 5, 1 << 8, 1 << 10
_ALWAYS = 0x7FF
"""Bits of CR4 that every modelled CPU has: VME to OSXMMEXCPT."""
_BY_FEATURE = (
    (11, 7, "ecx", 2),
    (12, 7, "ecx", 16),
    (16, 7, "ebx", 0),
    (17, 1, "ecx", 17),
    (18, 1, "ecx", 26),
    (20, 7, "ebx", 7),
    (21, 7, "ebx", 20),
    (22, 7, "ecx", 3),
)
"""Bit of CR4, and where CPUID tells of the feature: UMIP, LA57, FSGSBASE, PCID, XSAVE, SMEP, SMAP, PKU."""
_APIC_RESERVED = 0x2FF | 1 << 10
"""Of APIC_BASE; x2APIC is not modelled."""


def known_cr4(leaves: list[CpuidEntry2]) -> int:
    """The bits of CR4 that a CPU with these leaves has."""
    found = _ALWAYS
    for bit, leaf, register, feature in _BY_FEATURE:
        for entry in leaves:
            if entry.function == leaf and not entry.index and getattr(entry, register) >> feature & 1:
                found |= 1 << bit
    return found


def problem_of(value: Sregs, cr4_bits: int) -> str:
    """Why these registers are refused; empty if they are not."""
    cr0, cr4, efer = value.cr0, value.cr4, value.efer
    if cr4 & ~cr4_bits:
        return f"CR4 {cr4:#x} has bits that this CPU does not"
    if cr0 >> 32 or (cr0 & _NW and not cr0 & _CD) or (cr0 & _PG and not cr0 & _PE):
        return f"CR0 {cr0:#x}"
    if efer & _LME and cr0 & _PG:
        if not (cr4 & _PAE and efer & _LMA) or value.cr3 >> C_BIT + 1:
            return "long mode without PAE, without EFER.LMA or with a CR3 out of reach"
    elif efer & _LMA or value.cs.l:
        return "EFER.LMA or a 64-bit code segment outside of long mode"
    if value.apic_base & _APIC_RESERVED or value.apic_base >> C_BIT + 1:
        return f"APIC base {value.apic_base:#x}"
    return ""


def essence(value: Sregs) -> tuple[Any, ...]:
    """What of them is the processor's state, and no normal form of a monitor."""
    names = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
    segments = ((getattr(value, name).selector, getattr(value, name).base) for name in names)
    control = value.cr0, value.cr2, value.cr3, value.cr4, value.cr8, value.efer, value.apic_base
    tables = value.gdt.base, value.gdt.limit, value.idt.base, value.idt.limit
    return (*segments, value.cs.l, value.cs.db, value.ss.dpl, *control, *tables)
