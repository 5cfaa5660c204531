"""Commands to the secure processor itself, by /dev/sev (Linux include/uapi/linux/psp-sev.h; AMD 55766, chapter 5)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint32, c_uint64
from enum import IntEnum

from casemate.abi.layout import Struct

_PSP_SEV_H = "Linux include/uapi/linux/psp-sev.h"

FLAG_ES = 0x100
"""Of ``PlatformStatus.flags``: SEV-ES guests can be launched."""


class SevIoctl(IntEnum):
    """The one ioctl of /dev/sev."""

    ISSUE_CMD = 0xC010_5300

    @property
    def kernel_name(self) -> str:
        """As the header spells it."""
        return f"SEV_{self.name}"


class PlatformCommand(IntEnum):
    """``sev_issue_cmd.cmd``, without ``SEV_``; those that change the platform are left to its administrator."""

    PLATFORM_STATUS = 1
    PDH_CERT_EXPORT = 5
    GET_ID2 = 8

    @property
    def kernel_name(self) -> str:
        """As the header spells it."""
        return f"SEV_{self.name}"


class PlatformState(IntEnum):
    """``PlatformStatus.state``."""

    UNINIT = 0
    INIT = 1
    WORKING = 2


class IssueCmd(Struct):
    """``sev_issue_cmd``; ``data`` points to the command's own struct."""

    SIZE, SOURCE = 16, _PSP_SEV_H
    _fields_ = (("cmd", c_uint32), ("data", c_uint64), ("error", c_uint32))


class PlatformStatus(Struct):
    """``sev_user_data_status``."""

    SIZE, SOURCE = 12, _PSP_SEV_H
    _fields_ = (
        ("api_major", c_uint8),
        ("api_minor", c_uint8),
        ("state", c_uint8),
        ("flags", c_uint32),
        ("build", c_uint8),
        ("guest_count", c_uint32),
    )


class PdhCertExport(Struct):
    """``sev_user_data_pdh_cert_export``; lengths that are too small are answered with the right ones."""

    SIZE, SOURCE = 24, _PSP_SEV_H
    _fields_ = (
        ("pdh_cert_address", c_uint64),
        ("pdh_cert_len", c_uint32),
        ("cert_chain_address", c_uint64),
        ("cert_chain_len", c_uint32),
    )


class GetId2(Struct):
    """``sev_user_data_get_id2``."""

    SIZE, SOURCE = 12, _PSP_SEV_H
    _fields_ = (("address", c_uint64), ("length", c_uint32))
