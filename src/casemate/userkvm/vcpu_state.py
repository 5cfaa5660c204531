"""State of a vCPU beside its registers: x87 and SSE, extended state, events, debug registers (Linux api.rst)."""

from __future__ import annotations

import struct
from errno import EINVAL

from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import MpState
from casemate.host.model.cpu.state import CpuState
from casemate.host.model.vcpu import Activity
from casemate.userkvm.cpuid import SUPPORTED_XCR0
from casemate.userkvm.table import Descriptor, Refused, answers, copy_in, copy_out

_FXSAVE, _XSAVE = 512, 4096
_XSTATE_BV = 512
_XCRS, _XCRS_BYTES, _MAX_XCRS = struct.Struct("<IIIIQ"), 392, 16
"""Count, flags, and the first register's number, padding and value."""

MP_STATES = {
    Activity.RUNS: 0,
    Activity.WAITS: 1,
    Activity.HALTED: MpState.HALTED,
    Activity.STOPPED: MpState.HALTED,
    Activity.DESTROYED: 8,
    Activity.HELD: 9,
}
"""``kvm_mp_state.mp_state``; a vCPU that waits for its start is uninitialized, one that was destroyed is stopped."""


class ExtendedState(Descriptor):
    """Of the CPU whose ``_state`` the subclass has."""

    _state: CpuState

    def __init__(self) -> None:
        self._kept: dict[Ioctl, bytes] = {}
        """State that is kept for the monitor and that the guest does not see, by the ioctl that reads it."""

    @answers(Ioctl.GET_FPU)
    def get_fpu(self, address: int) -> None:
        """x87 and SSE in KVM's own order."""
        area = self._state.fxsave()
        head = area[0:2] + area[2:4] + area[4:5] + b"\0" + area[6:24]
        copy_out(address, area[32:160] + head + area[160:416] + area[24:28] + bytes(4))

    @answers(Ioctl.SET_FPU)
    def set_fpu(self, address: int) -> None:
        """Likewise."""
        data = copy_in(address, 416)
        head = data[128:152]
        area = head[0:5] + b"\0" + head[6:24] + data[408:412] + bytes(4) + data[0:128] + data[152:408]
        self._state.set_fxsave(area.ljust(_FXSAVE, b"\0"))

    @answers(Ioctl.GET_XSAVE)
    @answers(Ioctl.GET_XSAVE2)
    def get_xsave(self, address: int) -> None:
        """The legacy region; the guest has nothing beyond it."""
        area = bytearray(self._state.fxsave().ljust(_XSAVE, b"\0"))
        area[_XSTATE_BV] = 3
        copy_out(address, bytes(area))

    @answers(Ioctl.SET_XSAVE)
    def set_xsave(self, address: int) -> None:
        """Likewise."""
        self._state.set_fxsave(copy_in(address, _XSAVE)[:_FXSAVE])

    @answers(Ioctl.GET_VCPU_EVENTS)
    def get_events(self, address: int) -> None:
        """None waits."""
        self._get_kept(Ioctl.GET_VCPU_EVENTS, address)

    @answers(Ioctl.SET_VCPU_EVENTS)
    def set_events(self, address: int) -> None:
        """Kept."""
        self._set_kept(Ioctl.GET_VCPU_EVENTS, address)

    @answers(Ioctl.GET_DEBUGREGS)
    def get_debug(self, address: int) -> None:
        """As set."""
        self._get_kept(Ioctl.GET_DEBUGREGS, address)

    @answers(Ioctl.SET_DEBUGREGS)
    def set_debug(self, address: int) -> None:
        """Kept."""
        self._set_kept(Ioctl.GET_DEBUGREGS, address)

    @answers(Ioctl.GET_XCRS)
    def get_xcrs(self, address: int) -> None:
        """XCR0 alone."""
        copy_out(address, _XCRS.pack(1, 0, 0, 0, self._state.xcr0).ljust(_XCRS_BYTES, b"\0"))

    @answers(Ioctl.SET_XCRS)
    def set_xcrs(self, address: int) -> None:
        """XCR0; what the CPU has not is refused."""
        count, flags, _, _, value = _XCRS.unpack_from(copy_in(address, _XCRS_BYTES))
        if count > _MAX_XCRS or flags or (count and (not value & 1 or value & ~SUPPORTED_XCR0)):
            raise Refused(EINVAL, f"XCR0 {value:#x}")
        if count:
            self._state.xcr0 = value

    def _get_kept(self, ioctl: Ioctl, address: int) -> None:
        size = int(ioctl) >> 16 & 0x3FFF
        copy_out(address, self._kept.get(ioctl, bytes(size)))

    def _set_kept(self, ioctl: Ioctl, address: int) -> None:
        self._kept[ioctl] = copy_in(address, int(ioctl) >> 16 & 0x3FFF)
