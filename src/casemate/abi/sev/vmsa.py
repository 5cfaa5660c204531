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
        ("gap_0x180", c_uint8 * 88),
        ("rsp", c_uint64),
        ("gap_0x1e0", c_uint8 * 24),
        ("rax", c_uint64),
        ("star", c_uint64),
        ("lstar", c_uint64),
        ("cstar", c_uint64),
        ("sfmask", c_uint64),
        ("kernel_gs_base", c_uint64),
        ("sysenter_cs", c_uint64),
        ("sysenter_esp", c_uint64),
        ("sysenter_eip", c_uint64),
        ("cr2", c_uint64),
        ("gap_0x248", c_uint8 * 32),
        ("g_pat", c_uint64),
        ("gap_0x270", c_uint8 * 152),
        ("rcx", c_uint64),
        ("rdx", c_uint64),
        ("rbx", c_uint64),
        ("gap_0x320", c_uint8 * 8),
        ("rbp", c_uint64),
        ("rsi", c_uint64),
        ("rdi", c_uint64),
        *((f"r{number}", c_uint64) for number in range(8, 16)),
        ("gap_0x380", c_uint8 * 48),
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
