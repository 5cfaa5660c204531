"""The policy that an SNP guest is launched under (AMD 56860 SEV-SNP firmware ABI, 4.3)."""

from __future__ import annotations

from enum import IntFlag


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
