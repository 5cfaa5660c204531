"""A million random accesses to flash units: nothing raises, and what must always hold, holds."""

from __future__ import annotations

import random
from pathlib import Path

from casemate.address import Gpa
from casemate.devices.flash.cfi import CfiFlash
from casemate.devices.flash.file import FlashFile
from casemate.events import Event, FlashAction, FlashCommand
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory, FlashMode
from casemate.memory.map import MemoryMap
from casemate.memory.protection import WriteProtection
from casemate.memory.region import RomDevice
from casemate.testing.recording_vm import RecordingVm

OPERATIONS = 600_000
"""On each of two units. Two seconds: fewer would miss buffered programs that overflow, abort and follow errors."""
CHECKED_EVERY = 5_000
SIZE = 0x4000
COMMANDS = (0x00, 0x10, 0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0x90, 0x98, 0xD0, 0xD0, 0xE8, 0xE8, 0xF0, 0xFF)
KNOWN_STATUS = 0x80 | 0x20 | 0x10


class Counter:
    """An event sink that counts erases."""

    def __init__(self) -> None:
        self.erases = 0

    def report(self, event: Event) -> None:
        self.erases += isinstance(event, FlashCommand) and event.action is FlashAction.ERASE


class Unit:
    """A unit with a file behind it."""

    def __init__(self, path: Path, contents: bytes, readonly: bool) -> None:
        path.write_bytes(contents)
        self.path, self.vm, self.sink = path, RecordingVm(), Counter()
        backing = Backing(path.name, SIZE)
        self.memory = FlashMemory(1, backing, WriteProtection.READONLY_SLOT, self.vm, self.sink)
        self.memory.store(0, contents)
        self.flash = CfiFlash(1, self.memory, FlashFile.open(path, readonly=readonly), self.sink)
        self.region = RomDevice("vars", backing, self.flash)
        self.memory.attach(MemoryMap(self.vm), self.region, Gpa(0xFFC00000))

    def check(self) -> None:
        array = self.memory.mode is FlashMode.ARRAY
        assert self.region.romd is array
        assert len(self.vm.slots) == array
        assert self.flash.status & ~KNOWN_STATUS == 0
        self.vm.calls.clear()


def test_million_random_accesses_keep_every_invariant(tmp_path: Path) -> None:
    rng = random.Random(20)
    contents = rng.randbytes(SIZE)
    unit, locked = Unit(tmp_path / "vars.fd", contents, False), Unit(tmp_path / "code.fd", contents, True)
    stores = 0
    for number in range(OPERATIONS):
        size = rng.choice((1, 1, 1, 2, 4, 8))
        offset = rng.choice((0, 0x100, 0xFFC, rng.randrange(SIZE + 4)))
        if number & 3 == 3:
            for read in (unit, locked):
                value = read.flash.read_mmio(offset, size)
                assert (value is None) == (offset + size > SIZE)
                assert value is None or 0 <= value < 1 << 8 * size
        else:
            command = rng.choice(COMMANDS) if rng.random() < 0.9 else rng.randrange(0x100)
            value = rng.randrange(1 << 8 * size) & ~0xFF | command
            done = {target.flash.write_mmio(offset, size, value) for target in (unit, locked)}
            assert done == {offset + size <= SIZE}
            stores += True in done
        if number % CHECKED_EVERY == 0:
            unit.check()
            locked.check()
            assert unit.path.read_bytes() == unit.memory.read(0, SIZE)
    assert unit.path.read_bytes() == unit.memory.read(0, SIZE) != contents
    assert locked.path.read_bytes() == locked.memory.read(0, SIZE) == contents
    assert unit.sink.erases < locked.flash.violations < stores
    assert not unit.flash.status & 0x20
