"""How a host sets a SEV-ES guest up, which shows in its registers (Linux x86/amd-memory-encryption.rst)."""

from __future__ import annotations

from enum import StrEnum


class SevInit(StrEnum):
    """Which command set the guest up for SEV-ES."""

    LEGACY = "legacy"
    """KVM_SEV_ES_INIT, on a VM of the default type."""
    INIT2 = "init2"
    """KVM_SEV_INIT2 (Linux 6.10), on a VM of type KVM_X86_SEV_ES_VM."""
