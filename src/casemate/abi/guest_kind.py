"""The kinds of guest by their confidential-computing technology (Linux Documentation/virt/kvm/x86)."""

from __future__ import annotations

from enum import StrEnum


class GuestKind(StrEnum):
    """What protects the guest from the host."""

    PLAIN = "plain"
    SEV = "sev"
    SEV_ES = "sev-es"
    SNP = "snp"
    TDX = "tdx"

    @property
    def is_confidential(self) -> bool:
        """Whether guest memory is encrypted or otherwise closed to the host."""
        return self is not GuestKind.PLAIN

    @property
    def is_signed_at_launch(self) -> bool:
        """Whether the launch ends in a measurement that the owner's key signs; SNP and TDX guests prove themselves."""
        return self in (GuestKind.SEV, GuestKind.SEV_ES)

    @property
    def takes_flash(self) -> bool:
        """Whether firmware may live in flash; SNP and TDX keep it in private memory, which cannot be read-only."""
        return self not in (GuestKind.SNP, GuestKind.TDX)
