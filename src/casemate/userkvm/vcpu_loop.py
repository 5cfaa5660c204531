"""How a modelled vCPU runs inside of KVM_RUN, and how its exits look to the monitor (Linux api.rst, struct kvm_run)."""

from __future__ import annotations

import ctypes
from errno import EFAULT, EINTR
from typing import TYPE_CHECKING, Any

from casemate.abi.kvm.exit_reasons import ExitReason, InternalErrorSuberror, SystemEvent
from casemate.abi.kvm.structs import RUN_UNION, RunInternal, RunSystemEvent
from casemate.abi.layout import Struct
from casemate.host.clock import NANOSECONDS
from casemate.host.exits import (
    Hlt,
    Interrupted,
    KvmInternalError,
    MemoryFault,
    NestedFaultLoop,
    SevTermination,
    Shutdown,
    VmExit,
)
from casemate.userkvm.library import VcpuRecord, load

if TYPE_CHECKING:
    from casemate.userkvm.ioeventfd import Ioeventfds
    from casemate.userkvm.irqchip import Irqchip


class SignalControl:
    """Stops and waits by the library's flags, which signals set (``casemate.host.model.run_control.RunControl``)."""

    def __init__(self, record: VcpuRecord, address: int) -> None:
        self._record = record
        self._address = address
        self._library = load()

    def stop_requested(self) -> bool:
        """A signal came, or a new state."""
        return bool(self._record.stop_wanted)

    def request_stop(self) -> None:
        """Set the flag, and wake."""
        self._record.stop_wanted = 1
        self.wake()

    def take_stop(self) -> None:
        """The next KVM_RUN clears it."""

    def take_stale(self) -> bool:
        """The library saw the monitor write into code. Everything is to be protected anew."""
        if not self._record.is_stale:
            return False
        self._record.is_stale = 0
        for slot in self._record.code[: self._record.code_count]:
            ctypes.memset(slot.seen, 0, slot.pages)
        return True

    def wait(self, nanoseconds: int | None) -> None:
        """In the library, without Python."""
        self._library.kvm_wait(
            self._address, NANOSECONDS if nanoseconds is None else min(nanoseconds, NANOSECONDS)
        )

    def wake(self) -> None:
        """By an eventfd."""
        self._library.kvm_wake(self._address)


class InsideBus:
    """What is served within KVM_RUN; the rest leaves it (``casemate.host.hypervisor.IoBus``)."""

    def __init__(self, address: int, chips: Irqchip | None, events: Ioeventfds) -> None:
        self._address = address
        self._chips = chips
        self._events = events
        self._library = load()

    def read_port(self, port: int, size: int) -> int:
        """IN."""
        value = None if self._chips is None else self._chips.read_port(port, size)
        return int(self._library.kvm_exit_port(self._address, 0, port, size, 0)) if value is None else value

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT."""
        if self._chips is not None and self._chips.write_port(port, size, value):
            return
        if not self._events.signal(port, size, value, pio=True):
            self._library.kvm_exit_port(self._address, 1, port, size, value & 0xFFFFFFFF)

    def read_mmio(self, gpa: int, size: int) -> int:
        """Load."""
        chip = None if self._chips is None else self._chips.chip_at(gpa)
        if chip is None or self._chips is None:
            return int(self._library.kvm_exit_mmio(self._address, 0, gpa, size, 0))
        with self._chips.lock:
            return chip.read_mmio(gpa & 0xFFF, size) or 0

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        """Store."""
        chip = None if self._chips is None else self._chips.chip_at(gpa)
        if chip is not None and self._chips is not None:
            with self._chips.lock:
                chip.write_mmio(gpa & 0xFFF, size, value)
        elif not self._events.signal(gpa, size, value, pio=False):
            self._library.kvm_exit_mmio(self._address, 1, gpa, size, value & (1 << 64) - 1)


class ExitDoor:
    """Ends KVM_RUN for what is no access."""

    def __init__(self, record: VcpuRecord, address: int) -> None:
        self._record = record
        self._address = address
        self._library = load()

    def leave(self, reason: ExitReason, errno: int = 0) -> None:
        """KVM_RUN returns; this does at the next KVM_RUN."""
        self._library.kvm_leave(self._address, reason, -errno)

    def leave_for(self, vm_exit: VmExit) -> None:
        """As the kernel reports it."""
        match vm_exit:
            case Interrupted():
                self.leave(ExitReason.INTR, EINTR)
            case Hlt():
                self.leave(ExitReason.HLT)
            case Shutdown():
                self.leave(ExitReason.SHUTDOWN)
            case MemoryFault():
                self.leave(ExitReason.UNKNOWN, EFAULT)
            case SevTermination():
                self._details(RunSystemEvent(SystemEvent.SEV_TERM, 1))
                self.leave(ExitReason.SYSTEM_EVENT)
            case NestedFaultLoop():
                self.wait_for_signal()
            case KvmInternalError():
                self._details(RunInternal(InternalErrorSuberror.EMULATION))
                self.leave(ExitReason.INTERNAL_ERROR)

    def wait_for_signal(self) -> None:
        """Nothing of the guest happens, for ever: only a signal ends this KVM_RUN."""
        while not self._record.stop_wanted:
            self._library.kvm_wait(self._address, NANOSECONDS)
        self.leave(ExitReason.INTR, EINTR)

    def fail(self) -> None:
        """Something of ours went wrong."""
        self._details(RunInternal(InternalErrorSuberror.UNEXPECTED_EXIT_REASON))
        self.leave(ExitReason.INTERNAL_ERROR)

    def _details(self, struct: Struct) -> None:
        data: Any = struct.to_bytes()
        ctypes.memmove(self._record.run + RUN_UNION, data, len(data))
