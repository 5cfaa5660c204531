"""A grammar of flash accesses: one sentence for each row of the write-cycle table (QEMU hw/block/pflash_cfi01.c)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

Step = tuple[str, int, int, int]
"""``read`` or ``write``, offset, bytes, value."""

SECTOR = 0x1000
BLOCK = 0x100
DEFINED = frozenset((0x00, 0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0x90, 0x98, 0xE8, 0xF0, 0xFF))
NEAR_MISSES = (0x01, 0x28, 0xD0, 0x11, 0x71, 0xE9, 0xFE)


class FlashGrammar:
    """Makes sentences about a unit of ``size`` bytes. Each begins in array mode and leaves it as its row says;
    ``rows`` counts how often each row was spoken. All choices come from ``seed``.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.rows: Counter[str] = Counter()
        self._size = size
        self._rng = random.Random(seed)
        self._sentences: dict[str, Callable[[], Iterator[Step]]] = {
            **{f"0 {command:#04x}": self._one(command) for command in sorted(DEFINED - {0xE8})},
            "0 0xe8": self._unfinished_buffer,
            "0 other": self._other,
            "1 program, data": self._program,
            "1 erase, 0xd0": self._two(0x20, lambda: 0xD0),
            "1 erase, 0xff": self._two(0x20, lambda: 0xFF),
            "1 erase, other": self._two(0x20, lambda: self._but(0xD0, 0xFF)),
            "1 lock, 0xd0": self._two(0x60, lambda: 0xD0),
            "1 lock, 0x01": self._two(0x60, lambda: 0x01),
            "1 lock, 0xff": self._two(0x60, lambda: 0xFF),
            "1 lock, other": self._two(0x60, lambda: self._but(0xD0, 0x01, 0xFF)),
            "1 query, 0xff": self._two(0x98, lambda: 0xFF),
            "1 query, other": self._two(0x98, lambda: self._but(0xFF)),
            "2 buffer, confirmed": lambda: self._buffered(0xD0),
            "2 buffer, outside": lambda: self._buffered(0xD0, outside=True),
            "3 buffer, aborted": lambda: self._buffered(self._but(0xD0)),
            "3 buffer, after an error": lambda: self._buffered(0xD0, after_error=True),
        }

    def steps(self, least: int) -> Iterator[Step]:
        """Sentences of all rows in random order, until there are at least ``least`` steps."""
        count = 0
        names = list(self._sentences)
        while count < least:
            self._rng.shuffle(names)
            for name in names:
                self.rows[name] += 1
                for step in (*self._sentences[name](), *self._leave()):
                    count += 1
                    yield step

    def _leave(self) -> Iterator[Step]:
        yield from self._look()
        for _ in range(2):  # the first may still be data of a program
            yield "write", 0, 1, 0xFF
        if self._rng.random() < 0.5:
            yield "write", 0, 1, 0x50

    def _look(self) -> Iterator[Step]:
        for _ in range(self._rng.randrange(1, 4)):
            size = self._width()
            yield "read", self._place(size), size, 0

    def _one(self, command: int) -> Callable[[], Iterator[Step]]:
        def sentence() -> Iterator[Step]:
            yield self._command(command)

        return sentence

    def _other(self) -> Iterator[Step]:
        yield self._command(self._rng.choice((*NEAR_MISSES, self._but(*DEFINED))))

    def _program(self) -> Iterator[Step]:
        for _ in range(self._rng.randrange(1, 4)):
            yield self._command(self._rng.choice((0x10, 0x40)))
            size = self._width()
            yield "write", self._place(size), size, self._rng.randrange(1 << 8 * size)

    def _two(self, first: int, second: Callable[[], int]) -> Callable[[], Iterator[Step]]:
        def sentence() -> Iterator[Step]:
            yield self._command(first)
            yield from self._look()
            yield self._command(second())

        return sentence

    def _buffered(self, confirm: int, *, outside: bool = False, after_error: bool = False) -> Iterator[Step]:
        size = self._width()
        words = self._rng.randrange(2, 12)
        start = self._rng.randrange(1, self._size // BLOCK - 1) * BLOCK
        start += BLOCK - size * (words - 1) if outside else self._rng.randrange(0, BLOCK - size * words, size)
        if after_error:  # leaves the program error standing on a unit that takes programs
            yield from self._buffered(0xD0, outside=True)
            yield "write", 0, 1, 0xFF
        yield "write", start, 1, 0xE8
        yield "write", start, 1, words - 1
        for word in range(words):
            yield "write", start + word * size, size, self._rng.randrange(1 << 8 * size)
        yield "read", start, 1, 0
        yield "write", start, 1, confirm

    def _unfinished_buffer(self) -> Iterator[Step]:
        start = self._place(1) & -BLOCK
        yield self._command(0xE8)
        yield from self._look()
        yield "write", start, 1, 1
        yield from self._look()
        for word in range(2):
            yield "write", start + word, 1, self._rng.randrange(0x100)

    def _command(self, low: int) -> Step:
        size = self._width()
        value = self._rng.randrange(1 << 8 * size) & ~0xFF | low
        return "write", self._place(size), size, value

    def _place(self, size: int) -> int:
        near = self._rng.choice((0, 0x10, BLOCK - 4, SECTOR - 4, self._size - 4))
        far = self._rng.randrange(self._size - 4)
        return self._rng.choice((near, far)) & -size

    def _width(self) -> int:
        return self._rng.choice((1, 1, 2, 4))

    def _but(self, *excluded: int) -> int:
        while (value := self._rng.randrange(0x100)) in excluded:
            pass
        return value
