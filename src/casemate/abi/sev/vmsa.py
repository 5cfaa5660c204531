"""The save area that holds the registers of an encrypted vCPU, whole (AMD APM volume 2, table B-4)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

from casemate.abi.layout import Struct


class VmcbSegment(Struct):
    """A segment register."""

    SIZE = 16
    SOURCE = "AMD APM volume 2, table B-4"
    _fields_ = (
        ("selector", c_uint16),
        ("attributes", c_uint16),
        ("limit", c_uint32),
        ("base", c_uint64),
    )


class SaveArea(Struct):
    """The SEV-ES save area; the page behind it is zero. Names are the manual's; gaps are reserved or never set here."""

    SIZE = 0x670
    SOURCE = "AMD APM volume 2, table B-4"
    _fields_ = (
        ("es", VmcbSegment),
        ("cs", VmcbSegment),
        ("ss", VmcbSegment),
        ("ds", VmcbSegment),
        ("fs", VmcbSegment),
        ("gs", VmcbSegment),
        ("gdtr", VmcbSegment),
        ("ldtr", VmcbSegment),
        ("idtr", VmcbSegment),
        ("tr", VmcbSegment),
        ("ssp_and_cet", c_uint8 * 42),
        ("vmpl", c_uint8),
        ("cpl", c_uint8),
        ("gap_0xcc", c_uint8 * 4),
        ("efer", c_uint64),
        ("gap_0xd8", c_uint8 * 104),
        ("xss", c_uint64),
        ("cr4", c_uint64),
        ("cr3", c_uint64),
        ("cr0", c_uint64),
        ("dr7", c_uint64),
        ("dr6", c_uint64),
        ("rflags", c_uint64),
        ("rip", c_uint64),
        ("gap_0x180", c_uint8 * 232),
        ("g_pat", c_uint64),
        ("gap_0x270", c_uint8 * 160),
        ("rdx", c_uint64),
        ("gap_0x318", c_uint8 * 152),
        ("sev_features", c_uint64),
        ("gap_0x3b8", c_uint8 * 48),
        ("xcr0", c_uint64),
        ("gap_0x3f0", c_uint8 * 24),
        ("mxcsr", c_uint32),
        ("x87_ftw", c_uint16),
        ("x87_fsw", c_uint16),
        ("x87_fcw", c_uint16),
        ("gap_0x412", c_uint8 * 606),
    )
