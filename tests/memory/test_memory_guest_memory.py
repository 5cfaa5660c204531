"""DMA reaches RAM and only RAM."""

from __future__ import annotations

import pytest

from casemate.address import Gpa
from casemate.events import AccessPath, Violation, ViolationKind
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory
from casemate.memory.guest_memory import GuestMemory
from casemate.memory.map import MemoryMap
from casemate.memory.protection import WriteProtection
from casemate.memory.region import Mmio, Ram, Rom, RomDevice
from casemate.testing.recording_vm import RecordingSink, RecordingVm

RAM_SIZE = 0x10000
FLASH = 0x20000
ROM = 0x30000
REGISTERS = 0x40000


class NoDevice:
    def read_mmio(self, offset: int, size: int) -> int | None:
        raise AssertionError("DMA must not reach a device")

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        raise AssertionError("DMA must not reach a device")


class World:
    def __init__(self, protection: WriteProtection = WriteProtection.READONLY_VMA) -> None:
        self.vm = RecordingVm()
        self.sink = RecordingSink()
        self.map = MemoryMap(self.vm)
        self.low = Backing("low", RAM_SIZE // 2)
        self.high = Backing("high", RAM_SIZE // 2)
        self.map.add(Ram("low", self.low), Gpa(0))
        self.map.add(Ram("high", self.high), Gpa(RAM_SIZE // 2))
        self.map.add(Rom("rom", Backing("rom", 0x1000)), Gpa(ROM))
        self.map.add(Mmio("registers", 0x1000, NoDevice()), Gpa(REGISTERS))
        flash = Backing("flash", 0x1000)
        self.flash = FlashMemory(0, flash, protection, self.vm, self.sink)
        self.flash.attach(self.map, RomDevice("flash", flash, NoDevice()), Gpa(FLASH))
        self.map.commit()
        self.sink.events.clear()
        self.vm.calls.clear()
        self.memory = GuestMemory(self.map, self.vm, self.sink)


def test_dma_round_trip_crosses_ram_blocks() -> None:
    world = World()
    gpa = RAM_SIZE // 2 - 3
    assert world.memory.write(gpa, b"abcdef")
    assert world.memory.read(gpa, 6) == b"abcdef"
    assert bytes(world.high.writable.view[:3]) == b"def"
    assert world.vm.calls == [("memory_written", gpa, 6)]
    assert world.sink.events == []


def test_dma_of_nothing_is_fine_anywhere() -> None:
    world = World()
    assert world.memory.write(FLASH, b"")
    assert world.memory.read(1 << 64, 0) == b""


@pytest.mark.parametrize("protection", list(WriteProtection))
@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        (FLASH, 1),
        (FLASH - 1, 2),
        (ROM + 0xFFF, 1),
        (REGISTERS, 4),
        (RAM_SIZE - 4, 8),
        (RAM_SIZE, 1),
        ((1 << 64) - 4, 8),
        (1 << 64, 1),
    ],
)
def test_dma_outside_of_ram_moves_nothing_and_is_reported(
    gpa: int, size: int, protection: WriteProtection
) -> None:
    world = World(protection)
    before = [bytes(block.writable.view) for block in (world.low, world.high)]
    assert not world.memory.write(gpa, b"\xee" * size)
    assert world.memory.read(gpa, size) is None
    assert [bytes(block.writable.view) for block in (world.low, world.high)] == before
    assert world.flash.read(0, 0x1000) == bytes(0x1000)
    assert world.vm.calls == []
    assert world.sink.events == [Violation(ViolationKind.DMA, None, gpa, size, None, path=AccessPath.DMA)] * 2


def test_dma_stays_away_from_flash_in_command_mode() -> None:
    world = World()
    world.flash.leave_array_mode()
    assert not world.memory.write(FLASH, b"\x01")
    assert world.flash.read(0, 1) == b"\0"
