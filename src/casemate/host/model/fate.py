"""What becomes of a store that its slot does not take (Linux Documentation/virt/kvm/api.rst, KVM_RUN)."""

from __future__ import annotations

from enum import Enum


class Fate(Enum):
    """What becomes of a store."""

    MMIO = "the bus gets it"
    FAULT = "KVM_RUN fails with EFAULT"
    INPUT = "KVM executes the INS"
    ERROR = "KVM gives up, with KVM_EXIT_INTERNAL_ERROR"
    UNDEFINED = "the guest gets #UD"
