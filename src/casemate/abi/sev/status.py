"""Status codes of the secure processor (AMD 55766, 5.1.2; AMD 56860, chapter 6; Linux psp-sev.h)."""

from __future__ import annotations

from enum import IntEnum


class SevStatus(IntEnum):
    """``sev_ret_code``, without ``SEV_RET_``."""

    SUCCESS = 0
    INVALID_PLATFORM_STATE = 1
    INVALID_GUEST_STATE = 2
    INVALID_CONFIG = 3
    INVALID_LEN = 4
    ALREADY_OWNED = 5
    INVALID_CERTIFICATE = 6
    POLICY_FAILURE = 7
    INACTIVE = 8
    INVALID_ADDRESS = 9
    BAD_SIGNATURE = 10
    BAD_MEASUREMENT = 11
    ASID_OWNED = 12
    INVALID_ASID = 13
    WBINVD_REQUIRED = 14
    DFFLUSH_REQUIRED = 15
    INVALID_GUEST = 16
    INVALID_COMMAND = 17
    ACTIVE = 18
    HWSEV_RET_PLATFORM = 19
    HWSEV_RET_UNSAFE = 20
    UNSUPPORTED = 21
    INVALID_PARAM = 22
    RESOURCE_LIMIT = 23
    SECURE_DATA_INVALID = 24
    INVALID_PAGE_SIZE = 0x19
    INVALID_PAGE_STATE = 0x1A
    INVALID_MDATA_ENTRY = 0x1B
    INVALID_PAGE_OWNER = 0x1C
    AEAD_OFLOW = 0x1D
    RMP_INIT_REQUIRED = 0x20


_MEANINGS = {
    SevStatus.INVALID_GUEST_STATE: "the guest is not in the state that this command needs",
    SevStatus.INVALID_LEN: "the length is not allowed",
    SevStatus.POLICY_FAILURE: "the policy does not allow it",
    SevStatus.INVALID_ADDRESS: "the address is not allowed",
    SevStatus.BAD_SIGNATURE: "a signature does not verify",
    SevStatus.BAD_MEASUREMENT: "the measurement is not the guest's",
    SevStatus.INVALID_PARAM: "a parameter is not allowed",
    SevStatus.UNSUPPORTED: "the firmware does not support it",
    SevStatus.INVALID_PAGE_STATE: "the page is not in the state that this command needs",
    SevStatus.INVALID_PAGE_OWNER: "the page belongs to somebody else",
}


def meaning(status: int) -> str:
    """A status in words; unknown ones too."""
    try:
        known = SevStatus(status)
    except ValueError:
        return "unknown status"
    return _MEANINGS.get(known) or known.name.replace("_", " ").lower()
