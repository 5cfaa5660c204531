"""The invariants of (slot, mapping, array mode), held against /proc/self/maps."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from casemate.address import PAGE_SIZE, Gpa, GuestRange
from casemate.errors import HostError, InternalError
from casemate.events import ProtectionAction, ProtectionChange
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory, FlashMode
from casemate.memory.map import MemoryMap
from casemate.memory.protection import WriteProtection
from casemate.memory.region import Alias, Ram, RomDevice
from casemate.testing.recording_vm import RecordingSink, RecordingVm

VARS_SIZE = 0x84000
VARS_GPA = Gpa(0xFFC00000)


class NoDevice:
    def read_mmio(self, offset: int, size: int) -> int | None:
        return None

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        return False


def protected_bytes(backing: Backing) -> int:
    """How many bytes of the block's writable mapping the kernel holds read-only now."""
    first, last = backing.writable.hva, backing.writable.hva + backing.size
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        overlap = min(end, last) - max(start, first)
        if overlap > 0 and line.split()[1][1] == "-":
            assert start >= first, "protection reaches in front of the block"
            assert end <= last, "protection reaches behind the block"
            assert not overlap % PAGE_SIZE
            total += overlap
    return total


class Flash:
    def __init__(self, protection: WriteProtection, *, coalesced: bool = False) -> None:
        self.vm = RecordingVm()
        self.sink = RecordingSink()
        self.map = MemoryMap(self.vm)
        # Neighbours on both sides would show a protection that reaches too far.
        self.blocks = [Backing(name, VARS_SIZE) for name in ("before", "vars", "behind")]
        self.backing = self.blocks[1]
        self.map.add(Ram("ram", self.blocks[0]), Gpa(0))
        self.region = RomDevice("vars", self.backing, NoDevice())
        self.memory = FlashMemory(1, self.backing, protection, self.vm, self.sink, coalesced=coalesced)

    def attach(self) -> None:
        self.memory.attach(self.map, self.region, VARS_GPA)
        self.map.add(Alias("window", self.region, VARS_SIZE - 0x20000, 0x20000), Gpa(0xE0000), priority=1)
        self.map.commit()

    def flash_slots(self) -> int:
        return len(self.vm.slots) - 1


class FlashMachine(RuleBasedStateMachine):
    """Walks a unit through its life in any order and looks at the kernel after every step."""

    @initialize(protection=st.sampled_from(list(WriteProtection)))
    def build(self, protection: WriteProtection) -> None:
        self.flash = Flash(protection)
        self.contents = bytearray(VARS_SIZE)
        self.memory = self.flash.memory
        self.flash.attach()

    @rule()
    def enter(self) -> None:
        self.memory.enter_array_mode()

    @rule()
    def leave(self) -> None:
        self.memory.leave_array_mode()

    @rule(offset=st.integers(0, VARS_SIZE), data=st.binary(max_size=4))
    def store(self, offset: int, data: bytes) -> None:
        legal = self.memory.mode is FlashMode.COMMAND and offset + len(data) <= VARS_SIZE
        if legal:
            self.memory.store(offset, data)
            self.contents[offset : offset + len(data)] = data
        else:
            with pytest.raises(InternalError):
                self.memory.store(offset, data)

    @precondition(lambda self: self.memory.mode is FlashMode.ARRAY)
    @rule(fails=st.booleans())
    def launch(self, fails: bool) -> None:
        slots = dict(self.flash.vm.slots)
        try:
            with self.memory.launch_window() as mapping:
                assert protected_bytes(self.flash.backing) == 0
                assert self.flash.vm.slots == slots
                mapping.view[0] = self.contents[0] = self.contents[0] ^ 1
                if fails:
                    raise HostError("KVM_SEV_LAUNCH_UPDATE_DATA", errno.ENOMEM)
        except HostError:
            assert fails
        assert self.flash.vm.slots == slots

    @invariant()
    def slot_mode_and_mapping_agree(self) -> None:
        array = self.memory.mode is FlashMode.ARRAY
        vma = self.memory.protection is WriteProtection.READONLY_VMA
        assert self.flash.region.romd is array
        assert self.flash.flash_slots() == (2 if array else 0)
        assert protected_bytes(self.flash.backing) == (VARS_SIZE if array and vma else 0)
        assert protected_bytes(self.flash.blocks[0]) == protected_bytes(self.flash.blocks[2]) == 0

    @invariant()
    def contents_are_what_was_stored(self) -> None:
        assert self.memory.read(0, VARS_SIZE) == self.contents

    def teardown(self) -> None:
        for block in self.flash.blocks if hasattr(self, "flash") else ():
            block.close()


TestFlashMemoryInvariants = FlashMachine.TestCase
TestFlashMemoryInvariants.settings = settings(
    derandomize=True, max_examples=25, stateful_step_count=20, deadline=None
)


def kinds(flash: Flash) -> list[object]:
    return [call[0] for call in flash.vm.calls]


def test_flash_memory_orders_slot_and_mapping() -> None:
    flash = Flash(WriteProtection.READONLY_VMA)
    flash.map.commit()
    flash.vm.calls.clear()
    flash.memory.attach(flash.map, flash.region, VARS_GPA)
    assert kinds(flash) == ["mapping_changed", "add_slot"]
    flash.vm.calls.clear()
    flash.memory.leave_array_mode()
    assert kinds(flash) == ["delete_slot", "mapping_changed"]
    flash.vm.calls.clear()
    flash.memory.enter_array_mode()
    assert kinds(flash) == ["mapping_changed", "add_slot"]


def test_flash_memory_allows_late_stores_only_while_there_is_no_slot() -> None:
    flash = Flash(WriteProtection.READONLY_SLOT, coalesced=True)
    flash.map.commit()
    where = GuestRange(VARS_GPA, VARS_SIZE)
    flash.memory.attach(flash.map, flash.region, VARS_GPA)
    flash.vm.calls.clear()
    flash.memory.leave_array_mode()
    assert kinds(flash) == ["delete_slot", "coalesce_mmio"]
    assert flash.vm.calls[-1] == ("coalesce_mmio", where, True)
    flash.vm.calls.clear()
    flash.memory.enter_array_mode()
    assert kinds(flash) == ["coalesce_mmio", "add_slot"]
    assert flash.vm.calls[0] == ("coalesce_mmio", where, False)


@pytest.mark.parametrize("protection", [p for p in WriteProtection if p is not WriteProtection.READONLY_SLOT])
def test_flash_memory_allows_no_late_store_that_should_fault(protection: WriteProtection) -> None:
    flash = Flash(protection, coalesced=True)
    flash.attach()
    flash.memory.leave_array_mode()
    assert "coalesce_mmio" not in kinds(flash)


def test_flash_memory_reports_vma_protection() -> None:
    flash = Flash(WriteProtection.READONLY_VMA)
    flash.attach()
    flash.memory.leave_array_mode()
    flash.memory.enter_array_mode()
    with flash.memory.launch_window():
        pass
    armed, lifted = ProtectionAction.ARMED, ProtectionAction.LIFTED
    assert flash.sink.events == [
        ProtectionChange(armed, 1, "slot added"),
        ProtectionChange(lifted, 1, "command mode"),
        ProtectionChange(armed, 1, "slot added"),
        ProtectionChange(lifted, 1, "launch update"),
        ProtectionChange(armed, 1, "launch update done"),
    ]


@pytest.mark.parametrize("protection", [p for p in WriteProtection if p is not WriteProtection.READONLY_VMA])
def test_flash_memory_changes_no_mapping_for_other_protections(protection: WriteProtection) -> None:
    flash = Flash(protection)
    flash.attach()
    flash.memory.leave_array_mode()
    flash.memory.enter_array_mode()
    with flash.memory.launch_window():
        pass
    assert flash.sink.events == []
    assert "mapping_changed" not in kinds(flash)


@pytest.mark.parametrize(
    ("protection", "readonly", "own_view"),
    [
        (WriteProtection.READONLY_SLOT, True, False),
        (WriteProtection.READONLY_VMA, False, False),
        (WriteProtection.READONLY_VIEW, False, True),
        (WriteProtection.WRITABLE, False, False),
    ],
)
def test_flash_memory_slot_by_protection(protection: WriteProtection, readonly: bool, own_view: bool) -> None:
    flash = Flash(protection)
    flash.memory.attach(flash.map, flash.region, VARS_GPA)
    slot = next(slot for slot in flash.vm.slots.values() if slot.range.start == VARS_GPA)
    assert slot.readonly is readonly
    assert (slot.hva != flash.backing.writable.hva) is own_view
    if own_view:
        maps = Path("/proc/self/maps").read_text()
        line = next(line for line in maps.splitlines() if line.startswith(f"{slot.hva:x}-"))
        assert line.split()[1] == "r--s"


def unmap_for_real(flash: Flash) -> None:
    libc = ctypes.CDLL(None)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.munmap(flash.backing.writable.hva, PAGE_SIZE)


@pytest.mark.parametrize(
    "step",
    [
        lambda flash: flash.memory.leave_array_mode(),
        lambda flash: flash.memory.launch_window().__enter__(),
    ],
)
def test_flash_memory_mprotect_failure_is_fatal_and_named(step: Callable[[Flash], object]) -> None:
    flash = Flash(WriteProtection.READONLY_VMA)
    flash.attach()
    unmap_for_real(flash)
    with pytest.raises(
        HostError, match=r"mprotect failed: .*errno 12.*flash unit 1, host range \[0x"
    ) as caught:
        step(flash)
    assert caught.value.errno == errno.ENOMEM


def test_flash_memory_that_cannot_be_armed_gets_no_slot() -> None:
    flash = Flash(WriteProtection.READONLY_VMA)
    flash.attach()
    flash.memory.leave_array_mode()
    unmap_for_real(flash)
    with pytest.raises(HostError, match="mprotect"):
        flash.memory.enter_array_mode()
    assert flash.flash_slots() == 0
    assert flash.memory.mode is FlashMode.COMMAND


def test_flash_memory_attaches_once() -> None:
    flash = Flash(WriteProtection.READONLY_SLOT)
    flash.attach()
    with pytest.raises(InternalError, match="attached twice"):
        flash.memory.attach(flash.map, flash.region, VARS_GPA)
