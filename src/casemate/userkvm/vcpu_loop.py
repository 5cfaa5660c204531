"""How a modelled vCPU runs inside of KVM_RUN, and how its exits look to the monitor (Linux api.rst, struct kvm_run)."""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint64
from errno import EFAULT, EINTR
from threading import get_native_id
from typing import TYPE_CHECKING, Any, Protocol

from casemate.abi.kvm.exit_reasons import ExitReason, InternalErrorSuberror, SystemEvent
from casemate.abi.kvm.structs import (
    MEMORY_EXIT_FLAG_PRIVATE,
    RUN_UNION,
    RunDebug,
    RunHypercall,
    RunInternal,
    RunMemoryFault,
    RunSystemEvent,
)
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
from casemate.host.model.cpu.hooks import EFLAGS_IF
from casemate.userkvm.library import PAGE, Inside, VcpuRecord, load

if TYPE_CHECKING:
    from casemate.userkvm.guest_memfd import PrivateRanges
    from casemate.userkvm.ioeventfd import Ioeventfds
    from casemate.userkvm.irqchip import Irqchip
    from casemate.userkvm.legacy_chips import LegacyChips


def is_window_wanted(record: VcpuRecord) -> bool:
    """The monitor wants to inject an interrupt as soon as that can be."""
    return bool(record.eflags and c_uint8.from_address(record.run).value)


def is_window_open(record: VcpuRecord) -> bool:
    """The guest would take one now."""
    return not record.queued and bool(c_uint64.from_address(record.eflags).value & EFLAGS_IF)


class SignalControl:
    """Stops and waits by the library's flags, which signals set (``casemate.host.model.run_control.RunControl``)."""

    def __init__(self, record: VcpuRecord, address: int) -> None:
        self._record = record
        self._address = address
        self._inside = Inside.from_address(record.inside)
        self._library = load()

    def stop_requested(self) -> bool:
        """A signal came, a new state, or somebody who changes memory."""
        record = self._record
        if record.stop_wanted or record.held or record.attention:
            return True
        # Who waits for a window looks whether it is open whenever the engine comes back, which the ticker sees to.
        return is_window_wanted(record) and (is_window_open(record) or get_native_id() != record.thread)

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

    def defers_interrupts(self) -> bool:
        """A new state came in the middle of the access, or it is to be completed without anything else."""
        return bool(self._record.abandoned)

    def others_wait(self) -> bool:
        """Another vCPU has a ticket."""
        return bool(self._inside.tickets - self._inside.turn & 0xFFFFFFFF > 1)

    def pass_turn(self) -> None:
        """In the library, without Python."""
        if self.others_wait():
            self._library.kvm_pass_turn(self._address)

    def wait(self, nanoseconds: int | None) -> None:
        """In the library, without Python."""
        self._library.kvm_wait(
            self._address, NANOSECONDS if nanoseconds is None else min(nanoseconds, NANOSECONDS)
        )

    def wake(self) -> None:
        """By an eventfd."""
        self._library.kvm_wake(self._address)


class BusOwner(Protocol):
    """What the bus needs of its VM (``casemate.userkvm.vm.Vm``)."""

    chips: Irqchip | None
    ioeventfds: Ioeventfds
    private: PrivateRanges
    legacy: LegacyChips

    def host_address(self, gpa: int, size: int) -> int | None:
        """Where memory is now."""


class InsideBus:
    """What is served within KVM_RUN; the rest leaves it (``casemate.host.hypervisor.IoBus``)."""

    def __init__(self, door: ExitDoor, address: int, vm: BusOwner, number: int) -> None:
        self._number = number
        self._door = door
        self._address = address
        self._vm = vm
        self._chips = vm.chips
        self._events = vm.ioeventfds
        self._library = load()

    def read_port(self, port: int, size: int) -> int:
        """IN."""
        value = None if self._chips is None else self._chips.read_port(port, size)
        return int(self._library.kvm_exit_port(self._address, 0, port, size, 0)) if value is None else value

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT."""
        if self._chips is not None and self._chips.write_port(port, size, value):
            self._vm.legacy.note(port, value)
            return
        if not self._events.signal(port, size, value, pio=True):
            self._library.kvm_exit_port(self._address, 1, port, size, value & 0xFFFFFFFF)

    def read_mmio(self, gpa: int, size: int) -> int:
        """Load."""
        chip = None if self._chips is None else self._chips.chip_at(gpa, self._number)
        if chip is None or self._chips is None:
            place = self._private_place(gpa, size)
            if place is not None:
                return int.from_bytes(ctypes.string_at(place, size), "little")
            return int(self._library.kvm_exit_mmio(self._address, 0, gpa, size, 0))
        with self._chips.lock:
            return chip.read_mmio(gpa & 0xFFF, size) or 0

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        """Store."""
        chip = None if self._chips is None else self._chips.chip_at(gpa, self._number)
        if chip is not None and self._chips is not None:
            with self._chips.lock:
                chip.write_mmio(gpa & 0xFFF, size, value)
        elif (place := self._private_place(gpa, size)) is not None:
            ctypes.memmove(place, value.to_bytes(8, "little"), size)
        elif not self._events.signal(gpa, size, value, pio=False):
            self._library.kvm_exit_mmio(self._address, 1, gpa, size, value & (1 << 64) - 1)

    def _private_place(self, gpa: int, size: int) -> int | None:
        """Where private memory is that no file backed, once the monitor has given it one; None for all else."""
        if not self._vm.private.contains(gpa):
            return None
        while self._vm.private.contains(gpa) and self._vm.host_address(gpa, size) is None:
            if not self._door.leave_for_private(gpa):
                return None
        return self._vm.host_address(gpa, size)


class ExitDoor:
    """Ends KVM_RUN for what is no access."""

    def __init__(self, record: VcpuRecord, address: int) -> None:
        self._record = record
        self._address = address
        self._library = load()

    def leave(self, reason: ExitReason, errno: int = 0) -> None:
        """KVM_RUN returns; this does at the next KVM_RUN."""
        self._library.kvm_leave(self._address, reason, -errno)

    def leave_for_private(self, gpa: int) -> bool:
        """An access to private memory that is nowhere; False if the guest stands elsewhere when it goes on."""
        return self.leave_for_page(gpa, private=True)

    def leave_for_page(self, gpa: int, *, private: bool) -> bool:
        """An access to a page as what it is not (KVM_EXIT_MEMORY_FAULT); False as above."""
        flags = MEMORY_EXIT_FLAG_PRIVATE if private else 0
        self._details(RunMemoryFault(flags, gpa & -PAGE, PAGE))
        self._record.in_access = 1
        self.leave(ExitReason.MEMORY_FAULT, EFAULT)
        self._record.in_access = 0
        return not self._record.abandoned

    def hypercall(self, number: int, arguments: tuple[int, ...], *, is_long: bool) -> int:
        """Ask the monitor; what it puts into RAX."""
        details = RunHypercall(number, (c_uint64 * 6)(*arguments), 0, int(is_long))
        self._details(details)
        self._record.in_access = 1
        self.leave(ExitReason.HYPERCALL)
        self._record.in_access = 0
        return int(RunHypercall.from_address(self._record.run + RUN_UNION).ret)

    def leave_for_debugger(self, details: RunDebug) -> None:
        """A step or a breakpoint."""
        self._details(details)
        self.leave(ExitReason.DEBUG)

    def leave_for_end(self, vector: int) -> None:
        """A level-triggered interrupt ended."""
        c_uint8.from_address(self._record.run + RUN_UNION).value = vector
        self.leave(ExitReason.IOAPIC_EOI)

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
                self._details(RunSystemEvent(SystemEvent.SEV_TERM, 1, (c_uint64 * 16)(vm_exit.ghcb)))
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
            if self._record.held:
                self._library.kvm_park(self._address)
        self.leave(ExitReason.INTR, EINTR)

    def fail(self) -> None:
        """Something of ours went wrong."""
        self._details(RunInternal(InternalErrorSuberror.UNEXPECTED_EXIT_REASON))
        self.leave(ExitReason.INTERNAL_ERROR)

    def _details(self, struct: Struct) -> None:
        data: Any = struct.to_bytes()
        ctypes.memmove(self._record.run + RUN_UNION, data, len(data))
