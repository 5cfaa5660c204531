"""What a reset gives back to a vCPU, of a KVM that has only some of the registers."""

from __future__ import annotations

import ctypes

import pytest

from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import MsrEntry
from casemate.host.kvm import ioctl
from casemate.host.kvm.run_loop import LoopRecord, record_size
from casemate.host.kvm.vcpu_state import VcpuState

FIRST, MIDDLE, LAST = 0x174, 0x250, 0x4B564D01


def entries(buffer: bytearray) -> list[MsrEntry]:
    count = int.from_bytes(buffer[:8], "little")
    assert len(buffer) == 8 + count * MsrEntry.SIZE
    return [MsrEntry.from_bytes(buffer, 8 + number * MsrEntry.SIZE) for number in range(count)]


class Kvm:
    """Answers every register with its index and one, and stops at those that it does not have."""

    def __init__(self, missing: set[int]) -> None:
        self.missing = missing
        self.put: dict[int, int] = {}

    def call(self, fd: int, request: Ioctl, argument: bytearray) -> int:
        if request is Ioctl.GET_MSRS:
            for done, entry in enumerate(entries(argument)):
                if entry.index in self.missing:
                    return done
                entry.data = entry.index + 1
                argument[8 + done * MsrEntry.SIZE : 8 + (done + 1) * MsrEntry.SIZE] = entry.to_bytes()
            return len(entries(argument))
        if request is Ioctl.SET_MSRS:
            self.put |= {entry.index: entry.data for entry in entries(argument)}
        return 0


@pytest.mark.parametrize("missing", [set(), {FIRST}, {MIDDLE}, {LAST}, {FIRST, 0x175, MIDDLE, LAST}])
def test_reset_restores_the_registers_that_are_there(
    missing: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything, some = Kvm(set()), Kvm(missing)
    for kvm in (everything, some):
        monkeypatch.setattr(ioctl, "call", kvm.call)
        VcpuState(0).restore()
    assert {FIRST, MIDDLE, LAST} <= everything.put.keys()
    assert some.put == {index: index + 1 for index in everything.put if index not in missing}


def test_record_of_the_loop_is_as_the_library_has_it() -> None:
    assert record_size() == ctypes.sizeof(LoopRecord)
