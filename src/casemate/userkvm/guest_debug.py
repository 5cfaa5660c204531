"""Debugging a guest from its monitor: single step and breakpoints of code (Linux api.rst, KVM_SET_GUEST_DEBUG).

The guest's TF is set while it is stepped, as KVM does it, and is hidden from the monitor. Breakpoints of code
are found where it is translated. Data is watched where it is in memory when that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_uint64
from errno import EINVAL

from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import GuestDebug, Regs, RunDebug
from casemate.host.exits import DebugEvent
from casemate.host.model.cpu.debug_control import VECTOR_DB
from casemate.host.model.cpu.engine import Engine
from casemate.userkvm.capabilities import DEBUG_CONTROL
from casemate.userkvm.library import VcpuRecord
from casemate.userkvm.table import Refused, answers
from casemate.userkvm.vcpu_owner import VcpuOwner
from casemate.userkvm.vcpu_state import ExtendedState

_ENABLE, _SINGLE_STEP, _SOFTWARE, _HARDWARE, _BLOCK_INTERRUPTS = 1, 2, 1 << 16, 1 << 17, 1 << 20
_TF = 1 << 8
_DR6_FIXED, _DR6_BD, _DR6_STEP, _DR7_GD = 0xFFFF0FF0, 1 << 13, 1 << 14, 1 << 13
_REGISTERS = 4
_WRITE, _SIZES = 1, (1, 2, 8, 4)
"""What data breakpoints see, and their bytes, as DR7 has them."""


class DebuggedGuest(ExtendedState):
    """What a vCPU's debugger asked for."""

    vm: VcpuOwner
    record: VcpuRecord
    _engine: Engine
    _change: Callable[[Callable[[], None]], None]

    def __init__(self) -> None:
        super().__init__()
        self._control = 0
        self._breakpoints: dict[int, int] = {}
        """Linear addresses, by the number of the debug register."""
        self._watches: dict[int, tuple[int, int, bool]] = {}
        """Of data: address, size, and whether reads count, too."""
        self._dr7 = 0

    @answers(Ioctl.SET_GUEST_DEBUG, GuestDebug)
    def set_guest_debug(self, value: GuestDebug) -> None:
        """From the next instruction on."""
        control = value.control if value.control & _ENABLE else 0
        if control & ~DEBUG_CONTROL:
            raise Refused(EINVAL, f"guest debugging with {control & ~DEBUG_CONTROL:#x}")
        if control and self.vm.is_protected:
            raise Refused(EINVAL, "the guest's registers are protected")
        dr7 = value.debugreg[7] if control & _HARDWARE else 0
        if self._is_stepped:
            self._flags.value &= ~_TF
        self._control, self._dr7 = control, dr7
        before = self._breakpoints, self._watches
        code = [number for number in _enabled(dr7) if not _kind(dr7, number)]
        self._breakpoints = {number: value.debugreg[number] for number in code}
        self._watches = {
            number: (value.debugreg[number], _SIZES[dr7 >> 18 + 4 * number & 3], _kind(dr7, number) != _WRITE)
            for number in _enabled(dr7)
            if _kind(dr7, number)
        }
        self._engine.hooks.debugger.stop_at(
            steps=self._is_stepped,
            int3=bool(control & _SOFTWARE),
            blocks_interrupts=bool(control & _BLOCK_INTERRUPTS),
            guards_registers=bool(dr7 & _DR7_GD),
        )
        if (self._breakpoints, self._watches) != before:
            self._change(
                lambda: self._engine.set_breakpoints(self._breakpoints.values(), self._watches.values())
            )

    @property
    def _flags(self) -> c_uint64:
        return c_uint64.from_address(self._engine.hooks.eflags_at)

    @property
    def _is_stepped(self) -> bool:
        return bool(self._control & _SINGLE_STEP)

    def arm_step(self) -> None:
        """The guest is about to run."""
        if self._is_stepped:
            self._flags.value |= _TF

    def without_step(self, regs: Regs) -> Regs:
        """Registers as the monitor sees them."""
        if self._is_stepped:
            regs.rflags &= ~_TF
        return regs

    def debug_exit(self, event: DebugEvent) -> RunDebug:
        """How KVM_EXIT_DEBUG tells of it."""
        found = RunDebug(exception=event.vector, pc=event.address, dr7=self._dr7 | 0x400)
        if event.vector == VECTOR_DB:
            at_code = self._breakpoints.items() if event.is_breakpoint else ()
            hits = sum(1 << number for number, at in at_code if at == event.address)
            hits |= sum(
                1 << number for place, number in enumerate(self._watches) if event.watched >> place & 1
            )
            is_step = not (event.is_breakpoint or event.watched or event.is_register)
            found.dr6 = _DR6_FIXED | hits | _DR6_STEP * is_step | _DR6_BD * event.is_register
        return found


def _enabled(dr7: int) -> list[int]:
    return [number for number in range(_REGISTERS) if dr7 >> 2 * number & 3]


def _kind(dr7: int, number: int) -> int:
    """0 for code, else for data."""
    return dr7 >> 16 + 4 * number & 3
