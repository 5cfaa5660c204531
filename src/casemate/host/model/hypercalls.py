"""What KVM answers to a hypercall (Linux Documentation/virt/kvm/x86/hypercalls.rst; arch/x86/kvm/x86.c)."""

from __future__ import annotations

from errno import EPERM
from typing import Final

VMMCALL: Final = b"\x0f\x01\xd9"
VMCALL: Final = b"\x0f\x01\xc1"
KVM_ENOSYS: Final = 1000
_VAPIC_POLL_IRQ = 1


def answer(number: int, privilege: int) -> int:
    """RAX for the call ``number``. The model has no paravirtual services: nearly all numbers are unknown."""
    if privilege:
        return -EPERM
    return 0 if number == _VAPIC_POLL_IRQ else -KVM_ENOSYS
