"""The state that a reset gives back to a vCPU: what it was made with (Linux api.rst; Intel SDM volume 3, 10.1)."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL

from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import MsrEntry
from casemate.errors import HostError
from casemate.host.kvm import ioctl

_BLOCKS = (
    # Segments and control registers first, for they set the mode.
    (Ioctl.GET_SREGS, Ioctl.SET_SREGS, 312),
    (Ioctl.GET_REGS, Ioctl.SET_REGS, 144),
    (Ioctl.GET_FPU, Ioctl.SET_FPU, 416),
    (Ioctl.GET_LAPIC, Ioctl.SET_LAPIC, 1024),
    (Ioctl.GET_DEBUGREGS, Ioctl.SET_DEBUGREGS, 128),
    (Ioctl.GET_VCPU_EVENTS, Ioctl.SET_VCPU_EVENTS, 64),
    (Ioctl.GET_MP_STATE, Ioctl.SET_MP_STATE, 4),
)
_MSRS = (
    *(0x174, 0x175, 0x176, 0x1A0, 0x277),  # SYSENTER_*, MISC_ENABLE, PAT
    *range(0x200, 0x210),  # MTRR_PHYS*
    *(0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF),  # MTRR_FIX*, MTRR_DEF_TYPE
    *(
        0xC0000081,
        0xC0000082,
        0xC0000083,
        0xC0000084,
        0xC0000102,
    ),  # STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE
    *(0x4B564D00, 0x4B564D01),  # KVM_WALL_CLOCK_NEW, KVM_SYSTEM_TIME_NEW
)
_ONE_MSR = (1).to_bytes(8, "little")
"""The head of ``kvm_msrs`` with one entry."""


class VcpuState:
    """A copy of the state of the vCPU behind ``fd``, taken now."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._blocks = [(put, read_block(fd, get, size)) for get, put, size in _BLOCKS]
        self._msrs = _read_msrs(fd, _MSRS)

    def restore(self) -> None:
        """Put everything back."""
        for request, state in self._blocks:
            ioctl.call(self._fd, request, bytearray(state))
        for state in self._msrs:
            ioctl.call(self._fd, Ioctl.SET_MSRS, bytearray(_ONE_MSR + state))


def _read_msrs(fd: int, indices: Sequence[int]) -> list[bytes]:
    # KVM stops at a register that it does not have; without one it answers for all at once.
    found: list[bytes] = []
    while indices:
        entries = (MsrEntry(index=index).to_bytes() for index in indices)
        buffer = bytearray(len(indices).to_bytes(8, "little") + b"".join(entries))
        done = ioctl.call(fd, Ioctl.GET_MSRS, buffer)
        ends = range(len(_ONE_MSR) + MsrEntry.SIZE, len(buffer) + 1, MsrEntry.SIZE)
        found += [bytes(buffer[end - MsrEntry.SIZE : end]) for end in ends[:done]]
        indices = indices[done + 1 :]
    return found


def write_msr(fd: int, index: int, value: int) -> None:
    """Set one model-specific register. Raises HostError if KVM does not take it."""
    entry = MsrEntry(index=index, data=value)
    if ioctl.call(fd, Ioctl.SET_MSRS, bytearray(_ONE_MSR + entry.to_bytes())) != 1:
        raise HostError("KVM_SET_MSRS", EINVAL, f"register {index:#x}, value {value:#x}")


def read_block(fd: int, request: Ioctl, size: int) -> bytes:
    """What one of the ioctls that fill a struct of ``size`` bytes answers."""
    buffer = bytearray(size)
    ioctl.call(fd, request, buffer)
    return bytes(buffer)
