"""Page types and digest of SEV-SNP guests (AMD 56860 SEV-SNP firmware ABI, 8.17)."""

from __future__ import annotations

from enum import IntEnum

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
