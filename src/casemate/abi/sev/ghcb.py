"""The guest-hypervisor communication block and its MSR protocol (AMD 56421, revision 2.03)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

MSR_GHCB: Final = 0xC0010130
MSR_SEV_STATUS: Final = 0xC0010131
"""Bits: 0 SEV, 1 SEV-ES, 2 SNP, 7 debug-swap (AMD APM volume 2, 15.34.10)."""

STATUS_SEV, STATUS_SEV_ES, STATUS_SNP, STATUS_DEBUG_SWAP = 1 << 0, 1 << 1, 1 << 2, 1 << 7

PAGE_SIZE: Final = 0x1000
RAX, RBX, RCX, RDX, DR7 = 0x1F8, 0x318, 0x308, 0x310, 0x160
CPL: Final = 0xCB
"""One byte, unlike the others."""
SW_EXIT_CODE, SW_EXIT_INFO_1, SW_EXIT_INFO_2, SW_SCRATCH = 0x390, 0x398, 0x3A0, 0x3A8
VALID_BITMAP, VALID_BITMAP_SIZE = 0x3F0, 16
"""One bit for each 8 bytes of the save area."""
SHARED_BUFFER, SHARED_BUFFER_SIZE = 0x800, 0x7F0
"""Where requests put what the host is to read."""
USAGE: Final = 0xFFC
"""u32 at the end of the page; 0 is a GHCB."""


class ExitCode(IntEnum):
    """Why a guest asks: ``SW_EXIT_CODE``, and the error code of the #VC that made it ask."""

    READ_DR7 = 0x27
    WRITE_DR7 = 0x37
    RDPMC = 0x6F
    CPUID = 0x72
    INVD = 0x76
    IOIO = 0x7B
    MSR = 0x7C
    VMMCALL = 0x81
    WBINVD = 0x89
    MONITOR = 0x8A
    MWAIT = 0x8B
    NPF = 0x400
    PAGE_NOT_VALIDATED = 0x404
    MMIO_READ = 0x80000001
    MMIO_WRITE = 0x80000002
    NMI_COMPLETE = 0x80000003
    AP_RESET_HOLD = 0x80000004
    AP_JUMP_TABLE = 0x80000005
    PAGE_STATE_CHANGE = 0x80000010
    GUEST_REQUEST = 0x80000011
    EXTENDED_GUEST_REQUEST = 0x80000012
    AP_CREATION = 0x80000013
    HV_FEATURES = 0x8000FFFD
    UNSUPPORTED_EVENT = 0x8000FFFF


class MsrRequest(IntEnum):
    """Low 12 bits of the GHCB MSR when it holds no address; a response has the next number but one or so."""

    SEV_INFO_RESPONSE = 0x001
    SEV_INFO_REQUEST = 0x002
    CPUID_REQUEST = 0x004
    CPUID_RESPONSE = 0x005
    AP_RESET_HOLD_REQUEST = 0x006
    AP_RESET_HOLD_RESPONSE = 0x007
    PREFERRED_GPA_REQUEST = 0x010
    PREFERRED_GPA_RESPONSE = 0x011
    REGISTER_GPA_REQUEST = 0x012
    REGISTER_GPA_RESPONSE = 0x013
    PAGE_STATE_REQUEST = 0x014
    PAGE_STATE_RESPONSE = 0x015
    HV_FEATURES_REQUEST = 0x080
    HV_FEATURES_RESPONSE = 0x081
    TERMINATE = 0x100


IOIO_IN, IOIO_STRING = 1 << 0, 1 << 2
"""Bits of ``SW_EXIT_INFO_1`` for IOIO; the size in bytes at bit 4, the port at bit 16."""

PROTOCOL_MIN, PROTOCOL_MAX = 1, 2
"""Versions that are offered."""

HV_FEATURE_SNP: Final = 1 << 0
HV_FEATURE_AP_CREATION: Final = 1 << 1
"""Bits of the hypervisor's features."""

CERTIFICATES_END: Final = 24
"""Bytes of zeros that end the table of certificates of an extended guest request."""

TO_PRIVATE, TO_SHARED = 1, 2
"""Operations of a page state change."""
PSC_HEADER, PSC_ENTRIES = 8, 253
"""Of its request: bytes before the entries (u16 current, u16 last, u32 reserved), and how many u64 may follow."""
PSC_INVALID_HEADER, PSC_INVALID_ENTRY, PSC_GENERIC = 1 << 32 | 1, 1 << 32 | 2, 0x100 << 32
"""``SW_EXIT_INFO_2`` for requests that are refused."""
