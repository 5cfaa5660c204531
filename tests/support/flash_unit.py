"""A flash unit with a file behind it, on a VM that runs nothing, and what must always hold of it."""

from __future__ import annotations

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
