"""The envelope of SEV commands (Linux arch/x86/include/uapi/asm/kvm.h)."""

from __future__ import annotations

from ctypes import c_uint16, c_uint32, c_uint64

from casemate.abi.layout import Struct


class SevCmd(Struct):
    """``kvm_sev_cmd``; ``data`` is the address of the command's own struct, ``error`` the firmware's status."""

    SIZE = 24
    SOURCE = "arch/x86/include/uapi/asm/kvm.h"
    _fields_ = (
        ("id", c_uint32),
        ("pad0", c_uint32),
        ("data", c_uint64),
        ("error", c_uint32),
        ("sev_fd", c_uint32),
    )


class SevInit(Struct):
    """``kvm_sev_init``, of KVM_SEV_INIT2; ``vmsa_features`` without SNP_ACTIVE, which KVM sets by itself."""

    SIZE = 48
    SOURCE = "arch/x86/include/uapi/asm/kvm.h"
    _fields_ = (
        ("vmsa_features", c_uint64),
        ("flags", c_uint32),
        ("ghcb_version", c_uint16),
        ("pad1", c_uint16),
        ("pad2", c_uint32 * 8),
    )
