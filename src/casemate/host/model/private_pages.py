"""What a guest reads where the host sees ciphertext (AMD APM volume 2, 15.34: encryption lies below the CPU).

The modelled CPU knows no encryption: it is shown plaintext pages of their own instead. The host goes on to see the
ciphertext, and what it stores there is lost on the guest, as good as garbage. What the guest itself stores into its
other memory is not encrypted in the model.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from casemate.address import PAGE_SIZE, Hva


@dataclass(frozen=True, slots=True, order=True)
class _Run:
    """Pages of host range ``[start, end)``, kept in ``shadow`` at ``address``."""

    start: int
    end: int
    address: int = field(compare=False)
    shadow: mmap.mmap = field(compare=False)


class PrivatePages:
    """The plaintext of all encrypted pages of one guest, by the host address of the ciphertext."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def add(self, hva: Hva, plaintext: bytes) -> range:
        """Keep ``plaintext``, and what its pages hold around it; returns the host range of these pages."""
        start = hva - hva % PAGE_SIZE
        end = -(-(hva + len(plaintext)) // PAGE_SIZE) * PAGE_SIZE
        for page in range(start, end, PAGE_SIZE):
            if self._find(page) is None:
                self._copy(page, self._gap_end(page, end))
        for page in range(start, end, PAGE_SIZE):
            first, last = max(page, hva), min(page + PAGE_SIZE, hva + len(plaintext))
            run = self._find(page)
            assert run is not None
            ctypes.memmove(run.address + first - run.start, plaintext[first - hva : last - hva], last - first)
        return range(start, end)

    @property
    def count(self) -> int:
        """How many pages are the guest's alone."""
        return sum(run.end - run.start for run in self._runs) // PAGE_SIZE

    def cut(self, hva: int, size: int) -> Iterator[tuple[int, int]]:
        """Cut ``[hva, hva + size)`` into (host address that the guest shall see, bytes)."""
        at, end = hva, hva + size
        for run in self._runs:
            if run.end <= at or run.start >= end:
                continue
            if at < run.start:
                yield at, run.start - at
                at = run.start
            stop = min(run.end, end)
            yield run.address + at - run.start, stop - at
            at = stop
        if at < end:
            yield at, end - at

    def _find(self, page: int) -> _Run | None:
        return next((run for run in self._runs if run.start <= page < run.end), None)

    def _gap_end(self, page: int, end: int) -> int:
        return min([end, *(run.start for run in self._runs if run.start > page)])

    def _copy(self, start: int, end: int) -> None:
        shadow = mmap.mmap(-1, end - start)
        address = ctypes.addressof(ctypes.c_char.from_buffer(shadow))
        ctypes.memmove(address, start, end - start)
        insort(self._runs, _Run(start, end, address, shadow))
