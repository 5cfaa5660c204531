"""The registers that a launch measures, as offsets in the SEV-ES save area (AMD APM volume 2, table B-4).

Plain numbers: predicting a digest needs no more of the area, which ``casemate.abi.sev.vmsa`` declares whole.
"""

from __future__ import annotations

from struct import Struct

SEGMENT = Struct("<HHIQ")
"""Selector, attributes, limit and base of a segment register."""
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr")
"""In their order, from offset 0."""

REGISTERS = {
    "efer": (0xD0, 8),
    "cr4": (0x148, 8),
    "cr0": (0x158, 8),
    "dr7": (0x160, 8),
    "dr6": (0x168, 8),
    "rflags": (0x170, 8),
    "rip": (0x178, 8),
    "g_pat": (0x268, 8),
    "rdx": (0x310, 8),
    "sev_features": (0x3B0, 8),
    "xcr0": (0x3E8, 8),
    "mxcsr": (0x408, 4),
    "x87_fcw": (0x410, 2),
}
"""Offset and size of each, in bytes."""

SNP_ACTIVE, DEBUG_SWAP = 1 << 0, 1 << 5
"""Bits of ``sev_features``; ``casemate.abi.sev.features`` has them all."""
