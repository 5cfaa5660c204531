"""Commands of a SEV launch as the kernel takes them (Linux arch/x86/include/uapi/asm/kvm.h, struct kvm_sev_cmd)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

from casemate.abi.layout import Struct

_KVM_H = "Linux arch/x86/include/uapi/asm/kvm.h (include/uapi/linux/kvm.h before 6.10)"


class SevCmd(Struct):
    """``kvm_sev_cmd``, the argument of KVM_MEMORY_ENCRYPT_OP; ``data`` points to the command's own struct."""

    SIZE, SOURCE = 24, _KVM_H
    _fields_ = (
        ("id", c_uint32),
        ("pad0", c_uint32),
        ("data", c_uint64),
        ("error", c_uint32),
        ("sev_fd", c_uint32),
    )


class SevInit2(Struct):
    """``kvm_sev_init``, of KVM_SEV_INIT2."""

    SIZE, SOURCE = 48, _KVM_H
    _fields_ = (
        ("vmsa_features", c_uint64),
        ("flags", c_uint32),
        ("ghcb_version", c_uint16),
        ("pad1", c_uint16),
        ("pad2", c_uint8 * 32),
    )


class SevLaunchStart(Struct):
    """``kvm_sev_launch_start``; the owner's certificate and session by address, the guest's ``handle`` is an answer."""

    SIZE, SOURCE = 40, _KVM_H
    _fields_ = (
        ("handle", c_uint32),
        ("policy", c_uint32),
        ("dh_uaddr", c_uint64),
        ("dh_len", c_uint32),
        ("pad0", c_uint32),
        ("session_uaddr", c_uint64),
        ("session_len", c_uint32),
        ("pad1", c_uint32),
    )


class SevLaunchUpdateData(Struct):
    """``kvm_sev_launch_update_data``."""

    SIZE, SOURCE = 16, _KVM_H
    _fields_ = (("uaddr", c_uint64), ("len", c_uint32), ("pad0", c_uint32))


class SevLaunchMeasure(Struct):
    """``kvm_sev_launch_measure``; a ``len`` that is too small is answered with the right one."""

    SIZE, SOURCE = 16, _KVM_H
    _fields_ = (("uaddr", c_uint64), ("len", c_uint32), ("pad0", c_uint32))


class SevLaunchSecret(Struct):
    """``kvm_sev_launch_secret``: the packet's header, where its contents go, and their ciphertext, by address."""

    SIZE, SOURCE = 48, _KVM_H
    _fields_ = (
        ("hdr_uaddr", c_uint64),
        ("hdr_len", c_uint32),
        ("pad0", c_uint32),
        ("guest_uaddr", c_uint64),
        ("guest_len", c_uint32),
        ("pad1", c_uint32),
        ("trans_uaddr", c_uint64),
        ("trans_len", c_uint32),
        ("pad2", c_uint32),
    )


class SevDbg(Struct):
    """``kvm_sev_dbg``."""

    SIZE, SOURCE = 24, _KVM_H
    _fields_ = (("src_uaddr", c_uint64), ("dst_uaddr", c_uint64), ("len", c_uint32), ("pad", c_uint32))


class SevGuestStatus(Struct):
    """``kvm_sev_guest_status``."""

    SIZE, SOURCE = 12, _KVM_H
    _fields_ = (("handle", c_uint32), ("policy", c_uint32), ("state", c_uint32))
