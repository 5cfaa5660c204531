"""A vCPU of the machine's own KVM: the KVM_RUN loop and its exits (Linux api.rst, KVM_RUN and struct kvm_run)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import threading
from collections.abc import Mapping
from struct import Struct as Layout

from casemate.abi.kvm.exit_reasons import ExitReason, InternalErrorSuberror, SystemEvent
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import (
    IO_IN,
    RUN_UNION,
    CpuidEntry2,
    Regs,
    RunFailEntry,
    RunInternal,
    RunMemoryFault,
    RunSystemEvent,
    Sregs,
    Translation,
)
from casemate.address import PAGE_SIZE
from casemate.host.exits import Hlt, InternalFault, Interrupted, MemoryFault, Shutdown, VmExit
from casemate.host.hypervisor import IoBus
from casemate.host.kvm import ioctl
from casemate.host.slots import MemorySlot

_IMMEDIATE_EXIT = 1
_EXIT_REASON = 8
_IO = Layout("<BBHIQ")
_MMIO = Layout("<Q8sIB")
_REASON = Layout("<I")
_SAVED = (
    (Ioctl.GET_SREGS, Ioctl.SET_SREGS, 312),
    (Ioctl.GET_REGS, Ioctl.SET_REGS, 144),
    (Ioctl.GET_FPU, Ioctl.SET_FPU, 416),
    (Ioctl.GET_LAPIC, Ioctl.SET_LAPIC, 1024),
    (Ioctl.GET_DEBUGREGS, Ioctl.SET_DEBUGREGS, 128),
    (Ioctl.GET_VCPU_EVENTS, Ioctl.SET_VCPU_EVENTS, 64),
    (Ioctl.GET_MP_STATE, Ioctl.SET_MP_STATE, 4),
)
"""State that a reset puts back to what it was when the vCPU was made; segments first, for they set the mode."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.signal.restype = ctypes.c_void_p
_libc.siginterrupt.argtypes = (ctypes.c_int, ctypes.c_int)

KICK = signal.SIGRTMIN + 3
"""Sent to the thread that is in KVM_RUN, to get it out."""


class KvmVcpu:
    """One vCPU; see ``casemate.host.hypervisor.Vcpu`` for the protocol."""

    def __init__(
        self,
        fd: int,
        mmap_size: int,
        cpuid: list[CpuidEntry2],
        bus: IoBus,
        slots: Mapping[int, MemorySlot],
    ) -> None:
        self._fd = fd
        self._page = mmap.mmap(fd, mmap_size)
        self._bus = bus
        self._slots = slots
        self._stop_wanted = False
        self._thread: int | None = None
        _take_kicks()
        head = len(cpuid).to_bytes(4, "little") + bytes(4)
        ioctl.call(fd, Ioctl.SET_CPUID2, bytearray(head + b"".join(entry.to_bytes() for entry in cpuid)))
        self._initial = [(put, self._get(get, size)) for get, put, size in _SAVED]

    def run(self) -> VmExit:
        """Execute until something happens that the bus cannot handle."""
        page, reason_at = self._page, _EXIT_REASON
        self._thread = threading.get_ident()
        try:
            while not self._stop_wanted:
                # What is here after a failed KVM_RUN would be the last exit's.
                _REASON.pack_into(page, reason_at, ExitReason.UNKNOWN)
                failure = ioctl.run(self._fd)
                reason = _REASON.unpack_from(page, reason_at)[0]
                if failure:
                    vm_exit = self._failed(failure, reason)
                elif reason == ExitReason.IO:
                    self._port_access()
                    continue
                elif reason == ExitReason.MMIO:
                    self._mmio_access()
                    continue
                else:
                    vm_exit = self._other(reason)
                if vm_exit is not None:
                    return vm_exit
            self._stop_wanted = False
            page[_IMMEDIATE_EXIT] = 0
            return Interrupted()
        finally:
            self._thread = None

    def stop(self) -> None:
        """Make ``run`` return soon; from any thread."""
        self._stop_wanted = True
        self._page[_IMMEDIATE_EXIT] = 1
        self.wake()

    def wake(self) -> None:
        """End a wait in the kernel; from any thread."""
        thread = self._thread
        if thread is not None and thread != threading.get_ident():
            signal.pthread_kill(thread, KICK)

    def reset(self) -> None:
        """The state that the vCPU was made with."""
        for request, state in self._initial:
            ioctl.call(self._fd, request, bytearray(state))

    def rip(self) -> int | None:
        """The instruction pointer."""
        return int(self._regs().rip)

    def set_rip(self, rip: int) -> None:
        """Go on elsewhere."""
        regs = self._regs()
        regs.rip = rip
        ioctl.call(self._fd, Ioctl.SET_REGS, regs)

    def code_at_rip(self) -> tuple[bytes, int] | None:
        """The next bytes of code and their width in bits."""
        sregs = Sregs.from_bytes(self._get(Ioctl.GET_SREGS, Sregs.SIZE))
        address = sregs.cs.base + self._regs().rip
        bits = 64 if sregs.cs.l else 32 if sregs.cs.db else 16
        code = self._read_virtual(address, 15)
        return (code, bits) if code else None

    def close(self) -> None:
        """Give the descriptor and the shared area back; harmless when repeated."""
        if self._fd >= 0:
            self._page.close()
            os.close(self._fd)
            self._fd = -1

    def _port_access(self) -> None:
        direction, size, port, count, offset = _IO.unpack_from(self._page, RUN_UNION)
        for at in range(offset, offset + count * size, size):
            if direction == IO_IN:
                self._page[at : at + size] = self._bus.read_port(port, size).to_bytes(size, "little")
            else:
                self._bus.write_port(port, size, int.from_bytes(self._page[at : at + size], "little"))

    def _mmio_access(self) -> None:
        gpa, data, size, is_write = _MMIO.unpack_from(self._page, RUN_UNION)
        if is_write:
            self._bus.write_mmio(gpa, size, int.from_bytes(data[:size], "little"))
        else:
            at = RUN_UNION + 8
            self._page[at : at + size] = self._bus.read_mmio(gpa, size).to_bytes(size, "little")

    def _failed(self, failure: int, reason: int) -> VmExit | None:
        if failure in (errno.EINTR, errno.EAGAIN):
            return None
        if failure == errno.EFAULT:
            if reason == ExitReason.MEMORY_FAULT:
                fault = RunMemoryFault.from_bytes(self._page, RUN_UNION)
                return MemoryFault(fault.gpa, fault.size, None, self.rip())
            # Nothing in the shared area is about this: the kernel only says that it could not reach the memory.
            return MemoryFault(rip=self.rip())
        return InternalFault(f"KVM_RUN failed: {os.strerror(failure)}", self.rip())

    def _other(self, reason: int) -> VmExit:
        page, rip = self._page, self.rip()
        match reason:
            case ExitReason.HLT:
                return Hlt(interrupts_enabled=bool(self._regs().rflags & 1 << 9))
            case ExitReason.SHUTDOWN:
                return Shutdown(rip)
            case ExitReason.SYSTEM_EVENT:
                event = RunSystemEvent.from_bytes(page, RUN_UNION)
                return InternalFault(f"system event {_name(SystemEvent, event.type)}", rip)
            case ExitReason.INTERNAL_ERROR:
                error = RunInternal.from_bytes(page, RUN_UNION)
                return InternalFault(
                    f"KVM internal error {_name(InternalErrorSuberror, error.suberror)}", rip
                )
            case ExitReason.FAIL_ENTRY:
                entry = RunFailEntry.from_bytes(page, RUN_UNION)
                cause = entry.hardware_entry_failure_reason
                return InternalFault(f"the processor refused the guest's state, reason {cause:#x}", rip)
        return InternalFault(f"exit that was not asked for: {_name(ExitReason, reason)}", rip)

    def _read_virtual(self, gva: int, size: int) -> bytes:
        found = b""
        while len(found) < size:
            at = gva + len(found)
            translation = Translation(linear_address=at)
            ioctl.call(self._fd, Ioctl.TRANSLATE, translation)
            part = min(size - len(found), PAGE_SIZE - at % PAGE_SIZE)
            memory = self._read_physical(translation.physical_address, part) if translation.valid else None
            if memory is None:
                break
            found += memory
        return found

    def _read_physical(self, gpa: int, size: int) -> bytes | None:
        for slot in self._slots.values():
            if slot.range.contains(gpa, size):
                return ctypes.string_at(slot.hva + gpa - slot.range.start, size)
        return None

    def _regs(self) -> Regs:
        return Regs.from_bytes(self._get(Ioctl.GET_REGS, Regs.SIZE))

    def _get(self, request: Ioctl, size: int) -> bytes:
        buffer = bytearray(size)
        ioctl.call(self._fd, request, buffer)
        return bytes(buffer)


def _name(names: type[ExitReason] | type[SystemEvent] | type[InternalErrorSuberror], value: int) -> str:
    return names(value).name if value in set(names) else str(value)


def _take_kicks() -> None:
    # The handler only has to exist: a C function that does nothing with an int. Python's own handlers can be set
    # by the main thread alone, and would run there.
    if signal.getsignal(KICK) in (None, signal.SIG_DFL):
        _libc.signal(KICK, ctypes.cast(_libc.abs, ctypes.c_void_p))
        _libc.siginterrupt(KICK, 1)
