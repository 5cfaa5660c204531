"""Why KVM_RUN returned (Linux include/uapi/linux/kvm.h, struct kvm_run)."""

from __future__ import annotations

from enum import IntEnum


class ExitReason(IntEnum):
    """``kvm_run.exit_reason``. Names are the header's, without ``KVM_EXIT_``."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    AP_RESET_HOLD = 32
    X86_BUS_LOCK = 33
    NOTIFY = 37
    MEMORY_FAULT = 39

    @property
    def kernel_name(self) -> str:
        """As the header spells it."""
        return f"KVM_EXIT_{self.name}"


class InternalErrorSuberror(IntEnum):
    """``kvm_run.internal.suberror``. Names are the header's, without ``KVM_INTERNAL_ERROR_``."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


class SystemEvent(IntEnum):
    """``kvm_run.system_event.type``. Names are the header's, without ``KVM_SYSTEM_EVENT_``."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5
    SEV_TERM = 6
