"""A vCPU of the machine's own KVM: the KVM_RUN loop and its exits (Linux api.rst, KVM_RUN and struct kvm_run)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from casemate.abi.kvm.exit_reasons import ExitReason, InternalErrorSuberror, SystemEvent
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import (
    RUN_UNION,
    CpuidEntry2,
    MpState,
    Regs,
    RunFailEntry,
    RunInternal,
    RunMemoryFault,
    RunSystemEvent,
    Sregs,
    Translation,
)
from casemate.address import PAGE_SIZE
from casemate.host.exits import Hlt, Interrupted, KvmInternalError, MemoryFault, Shutdown, VmExit
from casemate.host.kvm import ioctl
from casemate.host.kvm.coalesced import CoalescedRing
from casemate.host.kvm.run_loop import RunLoop
from casemate.host.kvm.vcpu_state import VcpuState, read_block, write_msr
from casemate.host.slots import MemorySlot

if TYPE_CHECKING:
    from casemate.host.hypervisor import IoBus

_IMMEDIATE_EXIT = 1
_EXIT_REASON = 2
"""In 32-bit words."""
_RFLAGS_IF = 1 << 9
_EFER_LMA = 1 << 10
_LONGEST_INSTRUCTION = 15

_libc = ctypes.CDLL(None, use_errno=True)
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.signal.restype = ctypes.c_void_p
_libc.siginterrupt.argtypes = (ctypes.c_int, ctypes.c_int)

KICK = signal.SIGRTMIN + 3
"""Sent to the thread that is in KVM_RUN, to get it out."""


class KvmVcpu:
    """One vCPU; see ``casemate.host.hypervisor.Vcpu`` for the protocol. ``reset_chips`` resets what is around it.

    Whenever it was woken it calls ``polls``.

    ``ring`` is where its shared area has the VM's ring of coalesced writes, and the lock of that.
    What the registers of a ``sealed`` one show to the kernel is not the guest's state, so nobody asks.
    """

    def __init__(
        self,
        number: int,
        fd: int,
        mmap_size: int,
        cpuid: list[CpuidEntry2],
        bus: IoBus,
        slots: Mapping[int, MemorySlot],
        reset_chips: Callable[[], None],
        ring: tuple[int, threading.Lock],
        polls: Sequence[Callable[[], None]] = (),
        *,
        protected: bool = False,
    ) -> None:
        self.number = number
        self._fd = fd
        self._protected = protected
        self._page = mmap.mmap(fd, mmap_size)
        self._words = memoryview(self._page).cast("I")
        self._ring = CoalescedRing(self._page, *ring)
        self.write_was_coalesced = False
        self._bus = bus
        self._loop = RunLoop(self._page, ring[0], bus, self._deliver_coalesced)
        self._slots = slots
        self._reset_chips = reset_chips
        self._polls = polls
        self._stop_wanted = False
        # Reentrant, for a signal handler may call stop() while the same thread is in it.
        self._lock = threading.RLock()
        self._thread: int | None = None
        _take_kicks()
        head = len(cpuid).to_bytes(8, "little")
        ioctl.call(fd, Ioctl.SET_CPUID2, bytearray(head + b"".join(entry.to_bytes() for entry in cpuid)))
        self._initial = VcpuState(fd)

    def run(self) -> VmExit:
        """Execute until something happens that the bus cannot handle."""
        with self._lock:
            self._thread = threading.get_ident()
        try:
            return self._run()
        finally:
            with self._lock:
                self._thread = None

    def _run(self) -> VmExit:
        while True:
            result = self._loop.run(self._fd)
            if result >= 0:
                return self._other(result)
            vm_exit = self._failed(-result, self._words[_EXIT_REASON])
            if vm_exit is not None:
                return vm_exit

    @property
    def runs(self) -> int:
        """How often the guest was entered: KVM_RUN."""
        return self._loop.runs

    @property
    def has_late_stores(self) -> bool:
        """Whether coalesced writes of any vCPU of the VM wait; from any thread."""
        return self._ring.is_filled(self._words)

    def stop(self) -> None:
        """Make ``run`` return soon; from any thread."""
        with self._lock:
            self._stop_wanted = True
            self.wake()

    def wake(self) -> None:
        """Let devices look for their input soon, also while the guest waits in the kernel; from any thread."""
        with self._lock:
            if self._fd >= 0:
                # KVM_RUN then finishes the access that it last reported, and fails with EINTR.
                self._page[_IMMEDIATE_EXIT] = 1
                if self._thread not in (None, threading.get_ident()):
                    signal.pthread_kill(self._thread, KICK)

    def reset(self) -> None:
        """The state that the vCPU was made with; not while it runs."""
        self._reset_chips()
        self._initial.restore()

    def rip(self) -> int | None:
        """The instruction pointer, or None where it is sealed."""
        return None if self._protected else int(self._regs().rip)

    def is_halted(self) -> bool:
        """Whether it waits in HLT, which the kernel does not tell by itself; on the thread that runs it."""
        state = MpState.from_bytes(read_block(self._fd, Ioctl.GET_MP_STATE, MpState.SIZE))
        return bool(state.mp_state == MpState.HALTED)

    def set_rip(self, rip: int) -> None:
        """Go on elsewhere."""
        regs = self._regs()
        regs.rip = rip
        ioctl.call(self._fd, Ioctl.SET_REGS, regs)

    def place(self, address: int) -> None:
        """Let a vCPU that was never run start at ``address``: CS base and IP in one, as in real mode."""
        sregs, regs = self._sregs(), self._regs()
        sregs.cs.base, regs.rip = address & ~0xFFFF, address & 0xFFFF
        ioctl.call(self._fd, Ioctl.SET_SREGS, sregs)
        ioctl.call(self._fd, Ioctl.SET_REGS, regs)

    def set_msr(self, index: int, value: int) -> None:
        """Set one model-specific register."""
        write_msr(self._fd, index, value)

    def writing_instruction(self, gpa: int, size: int) -> int | None:
        """KVM's emulator is behind the instruction already, or still on one that repeats."""

        if self._protected or self.write_was_coalesced:
            return None
        regs, sregs = self._regs(), self._sregs()
        before = self._read_virtual(sregs.cs.base + regs.rip - _LONGEST_INSTRUCTION, _LONGEST_INSTRUCTION)
        found = self.code_at_rip()
        if found is None or len(before) < _LONGEST_INSTRUCTION:
            return None
        code, bits = found
        from casemate.host.write_target import find_write

        return find_write(before, code, bits, regs, sregs, lambda gva: self._translate(gva) == gpa, size)

    def code_at_rip(self, rip: int | None = None) -> tuple[bytes, int] | None:
        """The bytes of code and their width in bits."""
        if self._protected:
            return None
        sregs = self._sregs()
        bits = 64 if sregs.cs.l and sregs.efer & _EFER_LMA else 32 if sregs.cs.db else 16
        at = self._regs().rip if rip is None else rip
        code = self._read_virtual(sregs.cs.base + at, _LONGEST_INSTRUCTION)
        return (code, bits) if code else None

    def close(self) -> None:
        """Give the descriptor and the shared area back; harmless when repeated."""
        with self._lock:
            if self._fd >= 0:
                self._words.release()
                self._page.close()
                os.close(self._fd)
                self._fd = -1

    def _deliver_coalesced(self) -> None:
        self.write_was_coalesced = True
        try:
            self._ring.deliver(self._words, self._bus.write_mmio)
        finally:
            self.write_was_coalesced = False

    def _failed(self, failure: int, reason: int) -> VmExit | None:
        if failure in (errno.EINTR, errno.EAGAIN):
            return self._woken()
        if failure != errno.EFAULT:
            return KvmInternalError(f"KVM_RUN failed: {os.strerror(failure)}", self.rip())

        if reason == ExitReason.MEMORY_FAULT:
            fault = RunMemoryFault.from_bytes(self._page, RUN_UNION)
            return MemoryFault(fault.gpa, fault.size, None, self.rip())
        # Nothing in the shared area is about this: the kernel only says that it could not reach the memory.
        return self._find_fault()

    def _find_fault(self) -> MemoryFault:
        if self._protected:
            return MemoryFault()

        regs, sregs, found = self._regs(), self._sregs(), self.code_at_rip()
        from casemate.host.write_target import write_targets

        for target in write_targets(*found, regs, sregs) if found else ():
            gpa = self._translate(target.gva)
            if gpa is not None:
                return MemoryFault(gpa, target.size, target.value, regs.rip)
        return MemoryFault(rip=regs.rip)

    def _woken(self) -> Interrupted | None:
        with self._lock:
            is_stop, self._stop_wanted = self._stop_wanted, False
            self._page[_IMMEDIATE_EXIT] = 0
        if is_stop:
            return Interrupted()
        for poll in self._polls:
            poll()
        return None

    def _other(self, reason: int) -> VmExit:
        page, rip = self._page, self.rip()
        match reason:
            case ExitReason.HLT:
                return Hlt(interrupts_enabled=self._protected or bool(self._regs().rflags & _RFLAGS_IF))
            case ExitReason.SHUTDOWN:
                return Shutdown(rip)
            case ExitReason.SYSTEM_EVENT:
                event = RunSystemEvent.from_bytes(page, RUN_UNION)
                return KvmInternalError(f"system event {_name(SystemEvent, event.type)}", rip)
            case ExitReason.INTERNAL_ERROR:
                error = RunInternal.from_bytes(page, RUN_UNION)
                return KvmInternalError(
                    f"KVM internal error {_name(InternalErrorSuberror, error.suberror)}", rip
                )
            case ExitReason.FAIL_ENTRY:
                entry = RunFailEntry.from_bytes(page, RUN_UNION)
                cause = entry.hardware_entry_failure_reason
                return KvmInternalError(f"the processor refused the guest's state, reason {cause:#x}", rip)
        return KvmInternalError(f"exit that was not asked for: {_name(ExitReason, reason)}", rip)

    def _read_virtual(self, gva: int, size: int) -> bytes:
        found = b""
        while len(found) < size:
            at = gva + len(found)
            gpa = self._translate(at)
            part = min(size - len(found), PAGE_SIZE - at % PAGE_SIZE)
            memory = None if gpa is None else self._read_physical(gpa, part)
            if memory is None:
                break
            found += memory
        return found

    def _translate(self, gva: int) -> int | None:
        translation = Translation(linear_address=gva)
        ioctl.call(self._fd, Ioctl.TRANSLATE, translation)
        return translation.physical_address if translation.valid else None

    def _read_physical(self, gpa: int, size: int) -> bytes | None:
        for slot in self._slots.values():
            if slot.range.contains(gpa, size):
                return ctypes.string_at(slot.hva + gpa - slot.range.start, size)
        return None

    def _regs(self) -> Regs:
        return Regs.from_bytes(read_block(self._fd, Ioctl.GET_REGS, Regs.SIZE))

    def _sregs(self) -> Sregs:
        return Sregs.from_bytes(read_block(self._fd, Ioctl.GET_SREGS, Sregs.SIZE))


def _name(names: type[IntEnum], value: int) -> str:
    return names(value).name if value in set(names) else str(value)


def _take_kicks() -> None:
    # The handler only has to exist: a C function that does nothing with an int. Python's own handlers can be set
    # by the main thread alone, and would run there.
    if signal.getsignal(KICK) in (None, signal.SIG_DFL):
        _libc.signal(KICK, ctypes.cast(_libc.abs, ctypes.c_void_p))
        _libc.siginterrupt(KICK, 1)
