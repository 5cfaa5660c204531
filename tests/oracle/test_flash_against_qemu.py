"""The flash state machine against QEMU's own device, driven over the qtest protocol (QEMU docs/devel/testing/qtest)."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from flash_grammar import FlashGrammar, Step

from casemate.address import Gpa
from casemate.devices.flash.cfi import CfiFlash
from casemate.devices.flash.file import FlashFile
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory
from casemate.memory.map import MemoryMap
from casemate.memory.protection import WriteProtection
from casemate.memory.region import RomDevice
from casemate.testing.recording_vm import RecordingSink, RecordingVm

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")

SIZE = 0x4000
CODE_SIZE = 0x10000
LETTERS = {1: "b", 2: "w", 4: "l"}
OPERATIONS = {False: 50_000, True: 10_000}
"""Of the grammar, on a writable and on a read-only unit."""
EACH_ROW = 100
BATCH = 500
BUFFERED_PROGRAM = 0xE8
COMMANDS = [0x00, 0x01, 0x10, 0x20, 0x28, 0x40, 0x50, 0x60, 0x70, 0x90, 0x98, 0xD0, 0xF0, 0xFF]
DIFFERENCES = {
    "a buffered program of one word (0xE8, count 0)": "QEMU 7.2.9 to 9.0 never opens the buffer for it and drops the"
    " word; before, it went straight into the array; later versions program it, as the unit here does",
    "a word count in another block than the data": "QEMU 7.2.9 to 9.0 opens the buffer at the count's block, later"
    " versions and the unit here at the first data word's",
}
"""What is left out of the comparison, and why."""
CONTENTS = random.Random(1).randbytes(SIZE)


def version() -> str:
    """What the QEMU that is compared with calls itself."""
    assert QEMU is not None
    return subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[
        0
    ]


class Qtest:
    """QEMU's flash unit 1, stopped before its first instruction."""

    def __init__(self, folder: Path, readonly: bool) -> None:
        self.vars = folder / "qemu-vars.fd"
        self.vars.write_bytes(CONTENTS)
        code = folder / "code.fd"
        code.write_bytes(bytes(CODE_SIZE))
        assert QEMU is not None
        drive = "if=pflash,format=raw"
        self._process = subprocess.Popen(
            [
                *(
                    QEMU,
                    "-machine",
                    "q35",
                    "-accel",
                    "tcg",
                    "-S",
                    "-qtest",
                    "stdio",
                    "-qtest-log",
                    "/dev/null",
                ),
                *("-display", "none", "-nodefaults", "-m", "16"),
                *("-drive", f"{drive},unit=0,readonly=on,file={code}"),
                *("-drive", f"{drive},unit=1,readonly={'on' if readonly else 'off'},file={self.vars}"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._base = (1 << 32) - CODE_SIZE - SIZE

    def run(self, steps: list[Step]) -> list[int | None]:
        """What each step answers; a write answers None."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for what, offset, size, value in steps:
            argument = f" {value:#x}" if what == "write" else ""
            self._process.stdin.write(f"{what}{LETTERS[size]} {self._base + offset:#x}{argument}\n")
        self._process.stdin.flush()
        answers = [self._process.stdout.readline().split() for _ in steps]
        assert all(answer[0] == "OK" for answer in answers)
        return [int(answer[1], 16) if answer[1:] else None for answer in answers]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


class Ours:
    """The same unit here."""

    def __init__(self, folder: Path, readonly: bool) -> None:
        self.vars = folder / "our-vars.fd"
        self.vars.write_bytes(CONTENTS)
        file = FlashFile.open(self.vars, readonly=readonly)
        vm, sink, backing = RecordingVm(), RecordingSink(), Backing("vars", SIZE)
        memory = FlashMemory(1, backing, WriteProtection.READONLY_SLOT, vm, sink)
        memory.store(0, file.read())
        self._flash = CfiFlash(1, memory, file, sink)
        memory.attach(MemoryMap(vm), RomDevice("vars", backing, self._flash), Gpa(0xFFC00000))

    def run(self, steps: list[Step]) -> list[int | None]:
        """What each step answers; a write answers None."""
        return [self._do(*step) for step in steps]

    def _do(self, what: str, offset: int, size: int, value: int) -> int | None:
        if what == "read":
            return self._flash.read_mmio(offset, size)
        assert self._flash.write_mmio(offset, size, value)
        return None


def random_steps(seed: int, count: int) -> Iterator[Step]:
    """Accesses that wander through the state machine: mostly commands, near one another, of all widths."""
    rng = random.Random(seed)
    offset = 0
    for _ in range(count):
        size = rng.choice([1, 1, 1, 2, 4])
        if rng.random() < 0.3:
            offset = rng.choice([0, 0x10, 0x100, 0x1FFC, rng.randrange(SIZE - 4)])
        offset = min(offset + rng.choice([0, 0, 1, 4]), SIZE - 4) & -size
        value = rng.choice(COMMANDS) if rng.random() < 0.8 else rng.randrange(1 << 8 * size)
        if value & 0xFF == BUFFERED_PROGRAM:
            yield from buffered_program(
                offset & ~0xFF, rng.randrange(1, 8), size, rng.choice([0xD0, 0xD0, 0xFF])
            )
            continue
        yield rng.choice(["write", "write", "read"]), offset, size, value


def buffered_program(start: int, count: int, size: int, confirm: int) -> Iterator[Step]:
    """Program ``count + 1`` words from ``start`` on; versions differ in what a single word does, so none has one."""
    yield "write", start, 1, 0xFF
    yield "write", start, 1, BUFFERED_PROGRAM
    yield "write", start, 1, count
    for word in range(count + 1):
        yield "write", start + word * size, size, 0x11223344 * (word + 1) & (1 << 8 * size) - 1
    yield "read", start, 1, 0
    yield "write", start, 1, confirm
    yield "read", start, 1, 0


def buffered_steps() -> Iterator[Step]:
    """Buffered programs: complete, aborted, across the end of the block, after an error."""
    for count, start, size, confirm in [
        (3, 0x100, 1, 0xD0),
        (1, 0x300, 4, 0xD0),
        (3, 0x3FE, 1, 0xD0),
        (3, 0x1000, 1, 0xFF),
        (3, 0x1000, 2, 0xD0),
        (0xFF, 0x2000, 1, 0xD0),
    ]:
        for clear in (True, False):
            yield from buffered_program(start, count, size, confirm)
            if clear:
                yield "write", start, 1, 0x50
            yield "write", start, 1, 0xFF


def table_steps() -> Iterator[Step]:
    for command in (0x98, 0x90):
        yield "write", 0, 1, command
        for offset in range(0x110):
            yield "read", offset, 1, 0
        for size in (2, 4):
            yield "read", 0x10, size, 0
        yield "write", 0, 1, 0xFF
        yield "write", 0, 1, 0xFF


def assert_same(folder: Path, readonly: bool, steps: list[Step]) -> None:
    """Both units answer every step the same, and leave the same file."""
    theirs, ours = Qtest(folder, readonly), Ours(folder, readonly)
    try:
        for start in range(0, len(steps), BATCH):
            batch = steps[start : start + BATCH]
            pairs = zip(theirs.run(batch), ours.run(batch), strict=True)
            wrong = next((index for index, (their, our) in enumerate(pairs) if their != our), None)
            assert wrong is None, (
                f"{version()}: step {start + wrong} {batch[wrong]} differs, after {batch[max(0, wrong - 8) : wrong]}"
            )
    finally:
        theirs.close()
    assert theirs.vars.read_bytes() == ours.vars.read_bytes(), version()


@pytest.mark.parametrize("readonly", [False, True])
def test_flash_behaves_as_the_device_of_qemu(tmp_path: Path, readonly: bool) -> None:
    assert_same(tmp_path, readonly, [*table_steps(), *buffered_steps(), *random_steps(7, 10_000)])


@pytest.mark.parametrize("readonly", [False, True])
def test_every_row_of_the_write_cycle_table_is_that_of_qemu(tmp_path: Path, readonly: bool) -> None:
    grammar = FlashGrammar(SIZE, seed=11)
    assert_same(tmp_path, readonly, list(grammar.steps(OPERATIONS[readonly])))
    assert len(grammar.rows) == 27
    assert min(grammar.rows.values()) >= EACH_ROW or readonly
