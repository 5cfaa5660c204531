"""From regions to slots: what is deleted, what is added, in which order."""

from __future__ import annotations

import pytest

from casemate.address import Gpa
from casemate.errors import InternalError, UnsupportedError
from casemate.host.capabilities import VmCapabilities
from casemate.host.slots import MemorySlot
from casemate.memory.backing import Backing
from casemate.memory.map import MemoryMap
from casemate.memory.region import Alias, Mmio, Ram, Rom, RomDevice
from casemate.testing.recording_vm import RecordingVm

MIB = 1 << 20


class NoDevice:
    def read_mmio(self, offset: int, size: int) -> int | None:
        return None

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        return False


def ram(size: int = MIB) -> Ram:
    return Ram("ram", Backing("ram", size))


def flash(size: int = 0x20000) -> RomDevice:
    return RomDevice("flash", Backing("flash", size), NoDevice())


def test_map_gives_ram_writable_and_rom_read_only_slots() -> None:
    vm = RecordingVm()
    memory_map = MemoryMap(vm)
    memory_map.add(ram(), Gpa(0))
    memory_map.add(Rom("bios", Backing("bios", 0x10000)), Gpa(0xFFFF0000))
    memory_map.add(Mmio("lapic", 0x1000, NoDevice()), Gpa(0xFEE00000))
    memory_map.commit()
    assert [(slot.range.start, slot.readonly) for slot in memory_map.slots] == [
        (0, False),
        (0xFFFF0000, True),
    ]


def test_map_refuses_rom_without_read_only_slots() -> None:
    memory_map = MemoryMap(RecordingVm(VmCapabilities(readonly_memory=False)))
    memory_map.add(Rom("bios", Backing("bios", 0x10000)), Gpa(0xFFFF0000))
    with pytest.raises(UnsupportedError, match=r"bios at .* read-only"):
        memory_map.commit()


def test_map_commit_without_change_calls_nothing() -> None:
    vm = RecordingVm()
    memory_map = MemoryMap(vm)
    memory_map.add(ram(), Gpa(0))
    memory_map.commit()
    vm.calls.clear()
    memory_map.commit()
    assert vm.calls == []


def test_map_change_deletes_before_it_adds_and_leaves_others_alone() -> None:
    vm = RecordingVm()
    memory_map = MemoryMap(vm)
    other = ram()
    memory_map.add(other, Gpa(0))
    memory_map.add(ram(), Gpa(4 * MIB))
    memory_map.commit()
    vm.calls.clear()
    memory_map.add(Mmio("hole", 0x1000, NoDevice()), Gpa(4 * MIB + 0x8000), priority=1)
    memory_map.commit()
    assert [call[0] for call in vm.calls] == ["delete_slot", "add_slot", "add_slot"]
    added = [call[1] for call in vm.calls[1:]]
    assert {slot.number for slot in added if isinstance(slot, MemorySlot)} == {1, 2}
    assert memory_map.find(4 * MIB + 0x8004) is not None


def test_map_removed_region_leaves_a_hole_and_frees_its_number() -> None:
    vm = RecordingVm()
    memory_map = MemoryMap(vm)
    first, second = ram(), ram()
    memory_map.add(first, Gpa(0))
    memory_map.add(second, Gpa(MIB))
    memory_map.commit()
    memory_map.remove(first)
    memory_map.commit()
    assert memory_map.find(0) is None
    memory_map.add(first, Gpa(8 * MIB))
    memory_map.commit()
    assert sorted(vm.slots) == [0, 1]


def test_map_romd_flip_takes_the_alias_along() -> None:
    vm = RecordingVm()
    memory_map = MemoryMap(vm)
    unit = flash()
    memory_map.add(unit, Gpa(0xFFFE0000))
    memory_map.add(Alias("isa-bios", unit, 0x10000, 0x10000), Gpa(0xF0000), priority=1)
    memory_map.commit()
    numbers = set(vm.slots)
    unit.romd = False
    memory_map.commit()
    assert vm.slots == {}
    assert memory_map.find(0xF0010) == (unit, 0x10010)
    unit.romd = True
    memory_map.commit()
    assert set(vm.slots) == numbers
    aliased = next(slot for slot in vm.slots.values() if slot.range.start == 0xF0000)
    assert aliased.hva == unit.backing.writable.hva + 0x10000


@pytest.mark.parametrize("gpa", [-4096, (1 << 64) - 4096])
def test_map_refuses_what_does_not_fit_in_64_bits(gpa: int) -> None:
    with pytest.raises(InternalError, match="64 bits"):
        MemoryMap(RecordingVm()).add(ram(), Gpa(gpa))


def test_map_refuses_an_alias_that_reaches_outside() -> None:
    with pytest.raises(InternalError, match="outside"):
        MemoryMap(RecordingVm()).add(Alias("alias", ram(), MIB - 0x1000, 0x2000), Gpa(0))
