"""Status codes of the secure processor (AMD 55766, 5.1.2; AMD 56860, chapter 6; Linux psp-sev.h)."""

from __future__ import annotations

from enum import IntEnum

from casemate.errors import FirmwareStatusError


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


NO_FIRMWARE_CALL = 0xFFFFFFFF
"""``SEV_RET_NO_FW_CALL``: the kernel refused by itself, the firmware was not asked."""

_MEANINGS = {
    SevStatus.INVALID_PLATFORM_STATE: "the platform is not in the state that this command needs",
    SevStatus.INVALID_GUEST_STATE: "the guest is not in the state that this command needs",
    SevStatus.INVALID_CONFIG: "the platform's configuration does not allow it",
    SevStatus.INVALID_LEN: "the length is not allowed",
    SevStatus.ALREADY_OWNED: "the platform has an owner already",
    SevStatus.INVALID_CERTIFICATE: "the certificate is not valid",
    SevStatus.POLICY_FAILURE: "the policy does not allow it",
    SevStatus.INACTIVE: "the guest has no key in the memory controller",
    SevStatus.INVALID_ADDRESS: "the address is not allowed",
    SevStatus.BAD_SIGNATURE: "a signature does not verify",
    SevStatus.BAD_MEASUREMENT: "the measurement is not the guest's",
    SevStatus.ASID_OWNED: "another guest has this ASID",
    SevStatus.INVALID_ASID: "the ASID is not allowed",
    SevStatus.WBINVD_REQUIRED: "the caches must be written back first",
    SevStatus.DFFLUSH_REQUIRED: "the data fabric must be flushed first",
    SevStatus.INVALID_GUEST: "there is no such guest",
    SevStatus.INVALID_COMMAND: "the firmware knows no such command",
    SevStatus.ACTIVE: "the guest is still active",
    SevStatus.HWSEV_RET_PLATFORM: "the hardware failed; the platform may be used on",
    SevStatus.HWSEV_RET_UNSAFE: "the hardware failed; the platform must be reset",
    SevStatus.UNSUPPORTED: "the firmware does not support it",
    SevStatus.INVALID_PARAM: "a parameter is not allowed",
    SevStatus.RESOURCE_LIMIT: "the firmware has no resources left",
    SevStatus.SECURE_DATA_INVALID: "the integrity check of stored data failed",
    SevStatus.INVALID_PAGE_STATE: "the page is not in the state that this command needs",
    SevStatus.INVALID_PAGE_OWNER: "the page belongs to somebody else",
}
_RESET = "reset the platform, or ask its administrator to"
_REMEDIES = {
    SevStatus.INVALID_PLATFORM_STATE: "reload kvm_amd, which initializes the platform",
    SevStatus.INVALID_GUEST_STATE: "launch the guest anew",
    SevStatus.INVALID_LEN: "lengths are multiples of 16 bytes, a secret at most 16 KiB",
    SevStatus.INVALID_CERTIFICATE: "make the session anew, against the PDH that this platform exports now",
    SevStatus.POLICY_FAILURE: "compare the policy with the kind of guest, the session, and the firmware's version",
    SevStatus.INVALID_ADDRESS: "addresses are multiples of 16 bytes",
    SevStatus.BAD_SIGNATURE: "make the session anew, against the PDH that this platform exports now",
    SevStatus.BAD_MEASUREMENT: "use the keys of the session, and a packet for the measurement of now",
    SevStatus.HWSEV_RET_UNSAFE: _RESET,
    SevStatus.SECURE_DATA_INVALID: _RESET,
    SevStatus.UNSUPPORTED: "update the firmware of the secure processor",
    SevStatus.RESOURCE_LIMIT: "end other guests of this kind, or give SEV more ASIDs in the firmware setup",
    SevStatus.ASID_OWNED: "end other guests of this kind, or give SEV more ASIDs in the firmware setup",
}


def is_answer(status: int) -> bool:
    """Whether the firmware gave this status to a command that failed; else the kernel refused it by itself."""
    return status not in (SevStatus.SUCCESS, NO_FIRMWARE_CALL)


def meaning(status: int) -> str:
    """A status in words; unknown ones too."""
    known = _known(status)
    if known is None:
        return "unknown status"
    return _MEANINGS.get(known) or known.name.replace("_", " ").lower()


_SNP_REMEDIES = {
    SevStatus.POLICY_FAILURE: "compare the policy with that of the ID block, and with the firmware's version",
    SevStatus.BAD_SIGNATURE: "make ID block and authentication anew: casemate measure --mode snp --idkey",
    SevStatus.BAD_MEASUREMENT: "compare what the ID block was made for: casemate measure --mode snp --trace",
    SevStatus.INVALID_PARAM: "compare policy, ID block and CPUID table with what this firmware takes",
}


def refused(command: str, status: int, detail: str = "", *, snp: bool = False) -> FirmwareStatusError:
    """The error that says which command was refused, by the status's name and meaning, and what to do about it."""
    known = _known(status)
    words = f"{known.name}, {meaning(status)}" if known is not None else meaning(status)
    remedies = _REMEDIES | _SNP_REMEDIES if snp else _REMEDIES
    remedy = remedies.get(known, "") if known is not None else ""
    return FirmwareStatusError(command, status, f"{words}: {detail}" if detail else words, remedy)


def _known(status: int) -> SevStatus | None:
    return SevStatus(status) if status in set(SevStatus) else None
