"""The policy that a SEV or SEV-ES guest is launched under (AMD 55766 SEV API 0.24, chapter 3)."""

from __future__ import annotations

from enum import IntFlag


class SevPolicy(IntFlag):
    """The flags in the low 16 bits; bits 16 to 23 and 24 to 31 hold the least API version, major and minor."""

    NODBG = 1 << 0
    """The host may not read the guest by debug commands."""
    NOKS = 1 << 1
    """No other guest may share the key."""
    ES = 1 << 2
    """Register state is encrypted: the guest must be a SEV-ES guest."""
    NOSEND = 1 << 3
    DOMAIN = 1 << 4
    SEV = 1 << 5


LARGEST_POLICY = 0xFFFFFFFF
