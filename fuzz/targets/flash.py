"""Sequences of accesses to flash units, one writable and one read-only (JEDEC JESD68.01)."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from support.flash_unit import COMMANDS, SIZE, Unit

from fuzz.packed import NUMBERS, Packed
from fuzz.target import Target, count, quick

_EDGES = (0, 0x100, 0xFF8, 0xFFC, SIZE - 1, SIZE)


@functools.cache
def _units() -> tuple[Unit, Unit]:
    folder = Path(tempfile.mkdtemp(prefix="flash-"))
    contents = bytes(range(256)) * (SIZE // 256)
    units = Unit(folder / "vars.fd", contents, False), Unit(folder / "code.fd", contents, True)
    for unit in units:
        unit.path.unlink()
    folder.rmdir()
    return units


@quick(150)
@given(st.lists(NUMBERS, min_size=40, max_size=80))
def check(sequence: Sequence[int]) -> None:
    """Every access inside is answered, none outside; memory, mode and slots agree; what is read-only stays."""
    unit, locked = _units()
    for each in (unit, locked):
        each.flash.reset()
    before = locked.memory.read(0, SIZE)
    for number in sequence:
        choose = Packed(number)
        size, offset = choose.of((1, 1, 2, 4, 8)), choose.of((*_EDGES, choose.below(SIZE + 5)))
        reads = choose.below(4) == 0
        value = choose.of((*COMMANDS, choose.bits(8))) | choose.bits(56) << 8
        for each in (unit, locked):
            if reads:
                got = each.flash.read_mmio(offset, size)
                assert (got is not None) == (offset + size <= SIZE)
                assert got is None or 0 <= got < 1 << 8 * size
            else:
                done = each.flash.write_mmio(offset, size, value & ((1 << 8 * size) - 1))
                assert done == (offset + size <= SIZE)
            each.check()
    assert locked.memory.read(0, SIZE) == before
    count(len(sequence))


TARGET = Target("flash", "commands, programs and erases of flash units", check, "accesses")
