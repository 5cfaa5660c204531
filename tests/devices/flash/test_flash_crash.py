"""What a variable file holds when the process dies: the result of the first N commands, for some N."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.devices.flash.cfi import CfiFlash
from casemate.devices.flash.file import FlashFile
from casemate.devices.flash.sync import Sync
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory
from casemate.memory.protection import WriteProtection
from casemate.testing.recording_vm import RecordingSink, RecordingVm

SIZE = 0x4000
CONTENTS = random.Random(3).randbytes(SIZE)
KILLS = 12
Store = tuple[int, int]


def commands(seed: int) -> Iterator[list[Store]]:
    """Programs, erases and buffered programs for ever, each as its stores (offset, byte)."""
    rng = random.Random(seed)
    while True:
        offset = rng.randrange(SIZE)
        kind = rng.randrange(20)
        if kind == 0:
            yield [(offset, 0x20), (offset, 0xD0)]
        elif kind < 4:
            start = offset & ~0xFF
            words = [(start + index, rng.randrange(0x100)) for index in range(rng.randrange(1, 200))]
            yield [(start, 0xE8), (start, len(words) - 1), *words, (start, 0xD0)]
        else:
            yield [(offset, 0x10), (offset, rng.randrange(0x100))]


class Unit:
    """A unit in command mode, with a file or without."""

    def __init__(self, file: FlashFile | None) -> None:
        sink = RecordingSink()
        self.memory = FlashMemory(
            1, Backing("vars", SIZE), WriteProtection.READONLY_SLOT, RecordingVm(), sink
        )
        self.memory.store(0, CONTENTS)
        self._flash = CfiFlash(1, self.memory, file, sink)

    def do(self, command: list[Store]) -> None:
        for offset, value in command:
            self._flash.write_mmio(offset, 1, value)


@pytest.mark.parametrize("sync", list(Sync))
def test_file_is_the_replay_of_the_first_commands_at_every_write(
    sync: Sync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vars.fd"
    path.write_bytes(CONTENTS)
    really_write = os.pwrite
    writes: list[tuple[int, int]] = []

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        writes.append((offset, len(data)))
        return really_write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    unit, replay = Unit(FlashFile.open(path, readonly=False, sync=sync)), Unit(None)
    for number, command in zip(range(300), commands(5), strict=False):
        unit.do(command)
        replay.do(command)
        assert path.read_bytes() == replay.memory.view
        assert len(writes) == number + 1
    # One write for each command, within one page: what a kernel does wholly or, for a killed process, not at all.
    assert all(offset // 4096 == (offset + size - 1) // 4096 for offset, size in writes)


def test_killed_process_leaves_the_replay_of_the_first_commands(tmp_path: Path) -> None:
    path = tmp_path / "vars.fd"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_flash_crash as t; from pathlib import Path\n"
        "unit = t.Unit(t.FlashFile.open(Path(sys.argv[2]), readonly=False)); print(flush=True)\n"
        "for command in t.commands(int(sys.argv[3])): unit.do(command)"
    )
    reached = set()
    for kill in range(KILLS):
        path.write_bytes(CONTENTS)
        arguments = [sys.executable, "-c", program, str(Path(__file__).parent), str(path), str(kill)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.Random(kill).random() * 0.02)  # the kill must come at any time
            process.kill()
        reached.add(replayed_commands(path.read_bytes(), kill))
    assert len(reached) > KILLS // 2, reached


def replayed_commands(contents: bytes, seed: int) -> int:
    """How many commands lead to ``contents``."""
    wanted = hashlib.sha256(contents).digest()
    unit = Unit(None)
    for number, command in zip(range(20_000), commands(seed), strict=False):
        if contents[:64] == unit.memory.view[:64] and hashlib.sha256(unit.memory.view).digest() == wanted:
            return number
        unit.do(command)
    raise AssertionError("no replay leads to this file")


def test_idle_file_reaches_the_disk_when_it_was_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = count_syncs(monkeypatch)
    path = tmp_path / "vars.fd"
    path.write_bytes(CONTENTS)
    file = FlashFile.open(path, readonly=False, sync=Sync.IDLE)
    file.settle()
    file.write_back(0, b"a")
    file.settle()  # not yet: something was written since the last call
    assert synced == []
    file.settle()
    file.settle()
    file.close()
    assert len(synced) == 1


def test_always_reaches_the_disk_after_each_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = count_syncs(monkeypatch)
    path = tmp_path / "vars.fd"
    path.write_bytes(CONTENTS)
    unit = Unit(FlashFile.open(path, readonly=False, sync=Sync.ALWAYS))
    unit.do([(0, 0x10), (0, 1), (1, 0x10), (1, 2), (0, 0x20), (0, 0xD0)])
    assert len(synced) == 3


def count_syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    return synced
