"""A million random accesses to flash units: nothing raises, and what must always hold, holds."""

from __future__ import annotations

import random
from pathlib import Path

from support.flash_unit import COMMANDS, SIZE, Unit

OPERATIONS = 600_000
"""On each of two units. Two seconds: fewer would miss buffered programs that overflow, abort and follow errors."""
CHECKED_EVERY = 5_000


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
