"""Several choices out of one number: Hypothesis takes far longer for many small draws than for one large one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")

NUMBERS = st.integers(0, (1 << 128) - 1)


class Packed:
    """The choices of one of ``NUMBERS``, the first out of its lowest bits; at the end all are the first ones."""

    def __init__(self, number: int) -> None:
        self._rest = number

    def below(self, limit: int) -> int:
        """A number from 0 to ``limit`` - 1."""
        self._rest, found = divmod(self._rest, limit)
        return found

    def of(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.below(len(choices))]

    def bits(self, count: int) -> int:
        """A number of so many bits."""
        return self.below(1 << count)
