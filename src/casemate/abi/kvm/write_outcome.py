"""What becomes of a guest's direct write that its slot does not take (Linux api.rst, KVM_RUN; arch/x86/kvm/mmu)."""

from __future__ import annotations

from enum import StrEnum


class WriteOutcome(StrEnum):
    """The ways in which such a write ends."""

    MMIO = "MMIO exit"
    """User space is given the write."""
    EFAULT = "KVM_RUN fails with EFAULT"
    LIVELOCK = "endless nested page fault"
    """KVM can neither emulate the write nor reflect it, so it resumes the guest on the same instruction."""
    INPUT = "KVM executes the INS"
    INTERNAL_ERROR = "KVM_EXIT_INTERNAL_ERROR"
    """KVM does not know the instruction."""
    UNDEFINED = "the guest gets #UD"
