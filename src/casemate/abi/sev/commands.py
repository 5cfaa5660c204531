"""Commands about SEV guests, through KVM_MEMORY_ENCRYPT_OP (Linux include/uapi/linux/kvm.h, enum sev_cmd_id)."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class SevCommand(IntEnum):
    """``kvm_sev_cmd.id``; the kernel's names without ``KVM_SEV_``."""

    INIT = 0
    ES_INIT = 1
    LAUNCH_START = 2
    LAUNCH_UPDATE_DATA = 3
    LAUNCH_UPDATE_VMSA = 4
    LAUNCH_SECRET = 5
    LAUNCH_MEASURE = 6
    LAUNCH_FINISH = 7
    SEND_START = 8
    SEND_UPDATE_DATA = 9
    SEND_UPDATE_VMSA = 10
    SEND_FINISH = 11
    RECEIVE_START = 12
    RECEIVE_UPDATE_DATA = 13
    RECEIVE_UPDATE_VMSA = 14
    RECEIVE_FINISH = 15
    GUEST_STATUS = 16
    DBG_DECRYPT = 17
    DBG_ENCRYPT = 18
    SEND_CANCEL = 21
    INIT2 = 22
    SNP_LAUNCH_START = 100
    SNP_LAUNCH_UPDATE = 101
    SNP_LAUNCH_FINISH = 102

    @property
    def kernel_name(self) -> str:
        """As the header spells it."""
        return f"KVM_SEV_{self.name}"


class GuestState(StrEnum):
    """The states of a guest during its launch, as QMP words them (QEMU qapi/misc-i386.json, SevState)."""

    UNINIT = "uninit"
    LAUNCH_UPDATE = "launch-update"
    LAUNCH_SECRET = "launch-secret"
    RUNNING = "running"


BLOCK_SIZE = 16
"""Bytes; ranges that are encrypted in place start and end at multiples (AMD 55766 SEV API 0.24, 6.3)."""

MAX_SECRET = 16 << 10
"""Bytes in one LAUNCH_SECRET (AMD 55766 SEV API 0.24, 6.6)."""
