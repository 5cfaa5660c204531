"""Which pages an SNP guest may touch, asked when the engine fills its TLB (AMD APM volume 2, 15.36.7 and 15.34.5).

One byte for each page says what is refused. Private memory that the guest did not validate raises #VC 0x404; a shared
access to a page of the guest leaves the engine as a pseudo exception. ``native/hooks/tlb.c`` asks the table.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

REFUSE_PRIVATE, REFUSE_SHARED = 1, 2


class PageRights:
    """The table of one guest; its engines read it whenever they fill their TLBs, which are in ``emptied_by``."""

    def __init__(self, table: mmap.mmap) -> None:
        self._table = table
        self.emptied_by: list[Callable[[], None]] = []

    def forget(self) -> None:
        """Empty the TLBs."""
        for empty in self.emptied_by:
            empty()

    def set(self, page: int, count: int, refused: int) -> None:
        """What ``count`` pages from ``page`` on refuse, once the TLB is empty."""
        self._table[page : page + count] = bytes([refused]) * count
