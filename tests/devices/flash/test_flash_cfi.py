"""The flash state machine: every row of its table, all widths, and what must hold after any commands."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from casemate.address import Gpa
from casemate.devices.flash.cfi import CfiFlash
from casemate.devices.flash.spec import query_table
from casemate.events import AccessPath, FlashAction, FlashCommand, Violation, ViolationKind
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory, FlashMode
from casemate.memory.map import MemoryMap
from casemate.memory.protection import WriteProtection
from casemate.memory.region import RomDevice
from casemate.testing.recording_vm import RecordingSink, RecordingVm

SIZE = 0x3000
GPA = Gpa(0xFFC00000)
CONTENTS = bytes(i * 7 + (i >> 8) & 0xFF for i in range(SIZE))


class Unit:
    """A unit in array mode with known contents."""

    def __init__(
        self, *, readonly: bool = False, protection: WriteProtection = WriteProtection.READONLY_VMA
    ) -> None:
        self.vm, self.sink, self.backing = RecordingVm(), RecordingSink(), Backing("vars", SIZE)
        self.memory = FlashMemory(1, self.backing, protection, self.vm, self.sink)
        self.memory.store(0, CONTENTS)
        self.flash = CfiFlash(1, self.memory, None, self.sink, readonly=readonly)
        self.region = RomDevice("vars", self.backing, self.flash)
        self.memory.attach(MemoryMap(self.vm), self.region, GPA)
        self.sink.events.clear()

    def write(self, *values: int, offset: int = 0x10, size: int = 1) -> None:
        for value in values:
            assert self.flash.write_mmio(offset, size, value)

    def read(self, offset: int = 0x10, size: int = 1) -> int:
        value = self.flash.read_mmio(offset, size)
        assert value is not None
        return value

    @property
    def array(self) -> bool:
        return self.memory.mode is FlashMode.ARRAY

    def violations(self) -> list[Violation]:
        return [event for event in self.sink.events if isinstance(event, Violation)]


ARRAY, STATUS, IDENT, QUERY = "array", "status", "ident", "query"

# Bytes written at 0x10, what reads show then, the status register, and whether the bytes at 0x10 changed to this.
ROWS: list[tuple[list[int], str, int, bytes | None]] = [
    ([0x00], ARRAY, 0x80, None),
    ([0xF0], ARRAY, 0x80, None),
    ([0xFF], ARRAY, 0x80, None),
    ([0x50], ARRAY, 0x00, None),
    ([0x10], STATUS, 0x80, None),
    ([0x40], STATUS, 0x80, None),
    ([0x10, 0x5A], STATUS, 0x80, b"\x5a"),
    ([0x40, 0x5A], STATUS, 0x80, b"\x5a"),
    ([0x10, 0x5A, 0xFF], ARRAY, 0x80, b"\x5a"),
    ([0x50, 0x10, 0x5A], STATUS, 0x80, b"\x5a"),
    ([0x20], STATUS, 0x80, b"\xff" * 32),
    ([0x20, 0xD0], STATUS, 0x80, b"\xff" * 32),
    ([0x20, 0xFF], ARRAY, 0x80, b"\xff" * 32),
    ([0x20, 0x12], ARRAY, 0x80, b"\xff" * 32),
    ([0x60], STATUS, 0x80, None),
    ([0x60, 0xD0], STATUS, 0x80, None),
    ([0x60, 0x01], STATUS, 0x80, None),
    ([0x60, 0xFF], ARRAY, 0x80, None),
    ([0x60, 0x02], ARRAY, 0x80, None),
    ([0x50, 0x60, 0x01], STATUS, 0x80, None),
    ([0x70], STATUS, 0x80, None),
    ([0x70, 0x10, 0x5A], STATUS, 0x80, b"\x5a"),
    ([0x50, 0x70], STATUS, 0x00, None),
    ([0x90], IDENT, 0x80, None),
    ([0x90, 0xFF], ARRAY, 0x80, None),
    ([0x98], QUERY, 0x80, None),
    ([0x98, 0x77], QUERY, 0x80, None),
    ([0x98, 0x77, 0xFF], ARRAY, 0x80, None),
    ([0x01], ARRAY, 0x80, None),
    ([0x28], ARRAY, 0x80, None),
    ([0xD0], ARRAY, 0x80, None),
    ([0xE8], STATUS, 0x80, None),
    ([0x50, 0xE8], STATUS, 0x80, None),
    ([0xE8, 0x01], STATUS, 0x80, None),
    ([0xE8, 0x00, 0x5A], STATUS, 0x80, None),
    ([0xE8, 0x00, 0x5A, 0xD0], STATUS, 0x80, b"\x5a"),
    ([0xE8, 0x01, 0x5A, 0x5B, 0xD0], STATUS, 0x80, b"\x5b"),
    ([0xE8, 0x00, 0x5A, 0xFF], ARRAY, 0x80, None),
    ([0xE8, 0x00, 0x5A, 0x12], ARRAY, 0x80, None),
]


@pytest.mark.parametrize(("values", "shows", "status", "changed"), ROWS)
def test_flash_command(values: list[int], shows: str, status: int, changed: bytes | None) -> None:
    unit = Unit()
    unit.write(*values)
    expected = CONTENTS if changed is None else CONTENTS[:0x10] + changed + CONTENTS[0x10 + len(changed) :]
    answers = {ARRAY: expected[0x10], STATUS: status, IDENT: 0, QUERY: ord("Q")}
    assert unit.read() == answers[shows]
    assert unit.flash.status == status
    assert unit.array is (shows == ARRAY)
    assert unit.memory.read(0x10, 0x20) == expected[0x10:0x30]


@pytest.mark.parametrize(
    ("values", "shows", "status", "violating"),
    [
        ([0x10, 0x5A], STATUS, 0x90, [0x5A]),
        ([0x20, 0xD0], STATUS, 0xA0, [0x20, 0xD0]),
        ([0x20, 0xD0, 0x10, 0x5A], STATUS, 0xB0, [0x20, 0xD0, 0x5A]),
        ([0x10, 0x5A, 0x50], ARRAY, 0x00, [0x5A]),
        ([0xE8, 0x00, 0x5A], STATUS, 0x90, [0xE8, 0x00, 0x5A]),
        ([0xE8, 0x00, 0x5A, 0xD0], ARRAY, 0x90, [0xE8, 0x00, 0x5A, 0xD0]),
        ([0x60, 0xD0], STATUS, 0x80, []),
        ([0x5A], ARRAY, 0x80, [0x5A]),
        ([0x50, 0x70, 0x10, CONTENTS[0x10], 0x70, 0xFF], ARRAY, 0x10, []),
    ],
)
def test_flash_read_only_unit_answers_changes_nothing_and_reports_what_would_change_it(
    values: list[int], shows: str, status: int, violating: list[int]
) -> None:
    unit = Unit(readonly=True)
    unit.write(*values)
    assert unit.flash.status | 0x80 == status | 0x80
    assert unit.array is (shows == ARRAY)
    assert unit.memory.read(0, SIZE) == CONTENTS
    assert [violation.value for violation in unit.violations()] == violating
    assert {violation.kind for violation in unit.violations()} <= {ViolationKind.READONLY_UNIT}


def test_flash_violation_says_where_and_how_it_came() -> None:
    unit = Unit(readonly=True, protection=WriteProtection.READONLY_SLOT)
    unit.write(0x5A, 0x20)
    expected = Violation(ViolationKind.READONLY_UNIT, 1, GPA + 0x10, 1, 0x5A, path=AccessPath.READONLY_SLOT)
    assert unit.violations()[0] == expected
    unit.write(0xD0)
    assert unit.violations()[-1].path is AccessPath.NO_SLOT


def test_flash_tells_what_it_was_told_to_do() -> None:
    unit = Unit()
    unit.write(0x50, 0x70, 0x10, 0x5A, 0x20, 0xD0, 0x60, 0x01, 0xE8, 0x00, 0x77, 0xD0, 0xFF)
    commands = [event for event in unit.sink.events if isinstance(event, FlashCommand)]
    assert commands == [
        FlashCommand(1, FlashAction.PROBE, 0x10, 1),
        FlashCommand(1, FlashAction.PROBE, 0x10, 1),
        FlashCommand(1, FlashAction.PROGRAM, 0x10, 1),
        FlashCommand(1, FlashAction.ERASE, 0, 0x1000),
        FlashCommand(1, FlashAction.LOCK, 0x10, 1),
        FlashCommand(1, FlashAction.PROGRAM, 0, 0x100),
    ]


def test_flash_reports_a_byte_that_is_no_command() -> None:
    unit = Unit()
    unit.write(0x5A, 0x70, 0x10, 0x5A)
    assert unit.violations() == [
        Violation(ViolationKind.NOT_A_COMMAND, 1, GPA + 0x10, 1, 0x5A, path=AccessPath.EMULATOR)
    ]
    assert (unit.flash.commands, unit.flash.violations) == (2, 1)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_flash_programs_all_bytes_of_an_access(size: int) -> None:
    unit = Unit()
    unit.write(0x10, 0x44332211 & (1 << 8 * size) - 1, offset=0x20, size=size)
    assert unit.memory.read(0x20, 8) == b"\x11\x22\x33\x44"[:size] + CONTENTS[0x20 + size : 0x28]


def test_flash_takes_eight_bytes_as_two_cycles() -> None:
    unit = Unit()
    unit.write(0x44332211_00000010, offset=0x20, size=8)
    assert unit.memory.read(0x24, 4) == b"\x11\x22\x33\x44"
    assert unit.read(0x20, 8) == 0x00800080_00800080


@pytest.mark.parametrize(("size", "shown"), [(1, 0x80), (2, 0x80), (4, 0x00800080)])
def test_flash_status_is_doubled_on_a_wide_bus(size: int, shown: int) -> None:
    unit = Unit()
    unit.write(0x70)
    assert unit.read(0x100, size) == shown


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_flash_array_reads_are_contents(size: int) -> None:
    assert Unit().read(0x123, size) == int.from_bytes(CONTENTS[0x123 : 0x123 + size], "little")


def test_flash_erases_the_sector_around_the_offset_only() -> None:
    unit = Unit()
    unit.write(0x20, 0xD0, 0xFF, offset=0x1FFF)
    assert unit.memory.read(0, SIZE) == CONTENTS[:0x1000] + b"\xff" * 0x1000 + CONTENTS[0x2000:]


def test_flash_buffered_program_fills_its_block() -> None:
    unit = Unit()
    unit.write(0xE8, 3, offset=0x234)
    for word in range(4):
        unit.write(0xA0 + word, offset=0x300 + word)
    assert unit.memory.read(0x300, 4) == CONTENTS[0x300:0x304]
    unit.write(0xD0, 0xFF, offset=0x234)
    assert unit.memory.read(0x300, 5) == b"\xa0\xa1\xa2\xa3" + CONTENTS[0x304:0x305]


def test_flash_buffered_program_outside_of_its_block_is_dropped() -> None:
    unit = Unit()
    unit.write(0xE8, 1, 0xA0, offset=0x2FF)
    unit.write(0xA1, offset=0x300)
    assert unit.flash.status == 0x90
    unit.write(0xD0)
    assert unit.array
    assert unit.memory.read(0, SIZE) == CONTENTS


def test_flash_reset_returns_to_array_mode() -> None:
    unit = Unit()
    unit.write(0x10, 0x5A, 0xE8, 0x00, 0x77)
    unit.flash.reset()
    assert unit.array
    assert unit.flash.status == 0x80
    assert unit.read() == 0x5A


def test_flash_read_array_in_array_mode_leaves_the_slot_alone() -> None:
    unit = Unit()
    unit.vm.calls.clear()
    unit.write(0xFF, 0x50, 0x00)
    assert unit.vm.calls == []


@pytest.mark.parametrize("offset", [-1, SIZE - 3, SIZE, 1 << 40])
def test_flash_accesses_outside_are_nobody(offset: int) -> None:
    unit = Unit()
    assert unit.flash.read_mmio(offset, 4) is None
    assert not unit.flash.write_mmio(offset, 4, 0x10)
    assert unit.array


@pytest.mark.parametrize(("size", "log2"), [(0x84000, 14), (0x20000, 17), (0x1E0000, 17), (0x800000, 23)])
def test_flash_query_table(size: int, log2: int) -> None:
    table = query_table(size)
    assert len(table) == 0x52
    assert table[0x10:0x17] == b"QRY\x01\0\x31\0"
    assert table[0x27] == log2
    assert 1 << table[0x2A] == 256
    blocks = int.from_bytes(table[0x2D:0x2F], "little") + 1
    block_size = int.from_bytes(table[0x2F:0x31], "little") * 256
    assert blocks * block_size == size
    assert table[0x31:0x36] == b"PRI10"


BYTES = st.one_of(
    st.sampled_from([0x00, 0x01, 0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0x90, 0x98, 0xD0, 0xE8, 0xF0, 0xFF]),
    st.integers(0, 255),
)


def _is_erase(event: object) -> bool:
    return isinstance(event, FlashCommand) and event.action is FlashAction.ERASE


class CfiMachine(RuleBasedStateMachine):
    """Any writes at all, on a writable and on a read-only unit."""

    @initialize(protection=st.sampled_from(list(WriteProtection)))
    def build(self, protection: WriteProtection) -> None:
        self.unit = Unit(protection=protection)
        self.locked = Unit(protection=protection, readonly=True)
        self.stores = 0

    @rule(
        offset=st.integers(0, SIZE), size=st.sampled_from([1, 1, 2, 4, 8]), low=BYTES, rest=st.integers(0, 3)
    )
    def store(self, offset: int, size: int, low: int, rest: int) -> None:
        value = (rest * 0x0101_0101_0101_0100 | low) & (1 << 8 * size) - 1
        done = [unit.flash.write_mmio(offset, size, value) for unit in (self.unit, self.locked)]
        assert done == [offset + size <= SIZE] * 2
        self.stores += done[0]

    @rule(offset=st.integers(0, SIZE - 8), size=st.sampled_from([1, 2, 4, 8]))
    def load(self, offset: int, size: int) -> None:
        value = self.unit.read(offset, size)
        assert 0 <= value < 1 << 8 * size
        if self.unit.array:
            assert value == int.from_bytes(self.unit.memory.read(offset, size), "little")

    @rule()
    def reset(self) -> None:
        self.unit.flash.reset()
        assert self.unit.array

    @rule()
    def many_read_arrays_always_get_there(self) -> None:
        # The first 0xFF may be data of a program, or the count of a buffered one: then 256 words and a dismissal.
        for _ in range(260):
            self.unit.write(0xFF, offset=0x2000)
        assert self.unit.array

    @invariant()
    def slot_follows_array_mode(self) -> None:
        for unit in (self.unit, self.locked):
            assert unit.region.romd is unit.array
            assert len(unit.vm.slots) == unit.array

    @invariant()
    def status_has_known_bits_only(self) -> None:
        assert self.unit.flash.status & ~0x90 == 0

    @invariant()
    def read_only_unit_is_unchanged_and_every_erase_of_it_reported(self) -> None:
        assert self.locked.memory.read(0, SIZE) == CONTENTS
        assert self.locked.flash.violations == len(self.locked.violations()) <= self.stores
        erases = [event for event in self.unit.sink.events if _is_erase(event)]
        reported = [event.value for event in self.locked.violations() if event.value is not None]
        assert sum(value & 0xFF == 0x20 or value >> 32 & 0xFF == 0x20 for value in reported) >= len(erases)


TestCfiFlashInvariants = CfiMachine.TestCase
TestCfiFlashInvariants.settings = settings(
    derandomize=True, max_examples=30, stateful_step_count=25, deadline=None
)


@given(st.binary(min_size=1, max_size=40), st.integers(0, SIZE - 40))
@settings(derandomize=True, max_examples=50, deadline=None)
def test_flash_driver_of_ovmf_reads_back_what_it_programs(data: bytes, offset: int) -> None:
    unit = Unit()
    for position, byte in enumerate(data):
        unit.write(0x10, byte, offset=offset + position)
    unit.write(0xFF, offset=offset + len(data) - 1)
    assert unit.array
    assert unit.memory.read(offset, len(data)) == data
