"""Commands of an SNP launch as the kernel takes them (Linux arch/x86/include/uapi/asm/kvm.h, since 6.11)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint16, c_uint64

from casemate.abi.layout import Struct


class SnpLaunchStart(Struct):
    """``kvm_sev_snp_launch_start``; ``gosvw`` are the guest-visible workarounds, ``flags`` must be 0."""

    SIZE = 64
    SOURCE = "arch/x86/include/uapi/asm/kvm.h"
    _fields_ = (
        ("policy", c_uint64),
        ("gosvw", c_uint8 * 16),
        ("flags", c_uint16),
        ("pad0", c_uint8 * 6),
        ("pad1", c_uint64 * 4),
    )


class SnpLaunchUpdate(Struct):
    """``kvm_sev_snp_launch_update``; the kernel advances it by the pages that are done, ``len`` in bytes."""

    SIZE = 64
    SOURCE = "arch/x86/include/uapi/asm/kvm.h"
    _fields_ = (
        ("gfn_start", c_uint64),
        ("uaddr", c_uint64),
        ("len", c_uint64),
        ("type", c_uint8),
        ("pad0", c_uint8),
        ("flags", c_uint16),
        ("pad1", c_uint8 * 4),
        ("pad2", c_uint64 * 4),
    )


class SnpLaunchFinish(Struct):
    """``kvm_sev_snp_launch_finish``; the ID block (96 bytes) and its authentication (4096) by address."""

    SIZE = 88
    SOURCE = "arch/x86/include/uapi/asm/kvm.h"
    _fields_ = (
        ("id_block_uaddr", c_uint64),
        ("id_auth_uaddr", c_uint64),
        ("id_block_en", c_uint8),
        ("auth_key_en", c_uint8),
        ("vcek_disabled", c_uint8),
        ("host_data", c_uint8 * 32),
        ("pad0", c_uint8 * 3),
        ("flags", c_uint16),
        ("pad1", c_uint64 * 4),
    )
