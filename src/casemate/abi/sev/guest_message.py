"""What an SNP guest and the firmware say to each other, encrypted past the host (AMD 56860, SNP_GUEST_REQUEST)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum

from casemate.abi.layout import Struct
from casemate.abi.sev.report import REPORT_DATA_SIZE, AttestationReport

AES_256_GCM = 1
TAG_SIZE = 16
"""Bytes of ``authtag`` that are used."""
AUTHENTICATED_FROM = 0x30
"""The header from here on is authenticated, and the payload encrypted."""


class MessageType(IntEnum):
    """``msg_type``; a response has the next number."""

    REPORT_REQUEST = 5


class MessageHeader(Struct):
    """In front of the payload; both are one page at most."""

    SIZE = 0x60
    VERSION = 1
    SOURCE = "AMD 56860, guest message header"
    _fields_ = (
        ("authtag", c_uint8 * 32),
        ("msg_seqno", c_uint64),
        ("reserved_0x28", c_uint8 * 8),
        ("algo", c_uint8),
        ("hdr_version", c_uint8),
        ("hdr_size", c_uint16),
        ("msg_type", c_uint8),
        ("msg_version", c_uint8),
        ("msg_size", c_uint16),
        ("reserved_0x38", c_uint32),
        ("msg_vmpck", c_uint8),
        ("reserved_0x3d", c_uint8 * 35),
    )


class ReportRequest(Struct):
    """MSG_REPORT_REQ."""

    SIZE = 0x60
    SOURCE = "AMD 56860, MSG_REPORT_REQ"
    _fields_ = (
        ("report_data", c_uint8 * REPORT_DATA_SIZE),
        ("vmpl", c_uint32),
        ("key_sel", c_uint32),
        ("reserved", c_uint8 * 24),
    )


class ReportResponse(Struct):
    """MSG_REPORT_RSP; ``status`` is 0, or INVALID_PARAM and no report."""

    SIZE = 0x20 + AttestationReport.SIZE
    SOURCE = "AMD 56860, MSG_REPORT_RSP"
    _fields_ = (
        ("status", c_uint32),
        ("report_size", c_uint32),
        ("reserved", c_uint8 * 24),
        ("report", AttestationReport),
    )
