"""Pages, policy and digest of SEV-SNP guests (AMD 56860 SEV-SNP firmware ABI, 4.3 and 8.17)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint16, c_uint64
from enum import IntEnum, IntFlag

from casemate.abi.layout import Struct

DIGEST_SIZE = 48
"""Bytes of the launch digest, a SHA-384."""

VMSA_GPA = 0xFFFF_FFFF_F000
"""What the digest has as the address of every save area: the highest page that the RMP can name."""


class SnpPageType(IntEnum):
    """``PAGE_TYPE`` of SNP_LAUNCH_UPDATE; the same numbers as KVM's."""

    NORMAL = 1
    VMSA = 2
    ZERO = 3
    UNMEASURED = 4
    SECRETS = 5
    CPUID = 6

    @property
    def has_contents(self) -> bool:
        """Whether the page's contents enter the digest; of the others only type and address do."""
        return self in (SnpPageType.NORMAL, SnpPageType.VMSA)


class PageInfo(Struct):
    """PAGE_INFO: what is hashed for each page; its SHA-384 is the next ``digest_cur``."""

    SIZE = 0x70
    SOURCE = "AMD 56860, table 67"
    _fields_ = (
        ("digest_cur", c_uint8 * DIGEST_SIZE),
        ("contents", c_uint8 * DIGEST_SIZE),
        ("length", c_uint16),
        ("page_type", c_uint8),
        ("imi_page", c_uint8),
        ("vmpl3_perms", c_uint8),
        ("vmpl2_perms", c_uint8),
        ("vmpl1_perms", c_uint8),
        ("reserved", c_uint8),
        ("gpa", c_uint64),
    )


class SnpPolicy(IntFlag):
    """The guest policy's flags; bits 0 to 7 and 8 to 15 hold the least ABI version, minor and major."""

    SMT = 1 << 16
    """The host may use SMT."""
    RESERVED_ONE = 1 << 17
    """Must be one."""
    MIGRATE_MA = 1 << 18
    DEBUG = 1 << 19
    """The host may read the guest by debug commands."""
    SINGLE_SOCKET = 1 << 20
    CXL_ALLOW = 1 << 21
    MEM_AES_256_XTS = 1 << 22
    RAPL_DIS = 1 << 23
    CIPHERTEXT_HIDING_DRAM = 1 << 24
    PAGE_SWAP_DISABLE = 1 << 25


DEFAULT_POLICY = SnpPolicy.SMT | SnpPolicy.RESERVED_ONE
"""QEMU's: SMT, no debugging (qapi/qom.json, sev-snp-guest)."""


def policy_words(policy: int) -> str:
    """``smt, debug``: the flags of a policy by name, without the one that is always set."""
    flags = (flag for flag in SnpPolicy if flag & policy and flag is not SnpPolicy.RESERVED_ONE)
    return ", ".join(str(flag.name).lower().replace("_", "-") for flag in flags) or "nothing"
