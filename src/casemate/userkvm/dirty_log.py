"""Which pages of a slot were written to, as KVM_GET_DIRTY_LOG says (``native/kvm/coherence.c``; Linux api.rst, 4.8)."""

from __future__ import annotations

import ctypes

from casemate.address import PAGE_SIZE
from casemate.host.slots import MemorySlot
from casemate.userkvm.library import load

_BITS = 64


class SlotLog:
    """Of one slot, from now on. Writes of the monitor count as well.

    Where its pages cannot be watched (``is_watched``; Linux userfaultfd(2)) every page may have been written to.
    """

    def __init__(self, slot: MemorySlot, *, is_watched: bool) -> None:
        self._hva = int(slot.hva)
        self._pages = slot.range.size // PAGE_SIZE
        self._words = (ctypes.c_uint64 * -(-self._pages // _BITS))()
        self._library = load()
        self._is_watched = is_watched and not self._library.kvm_log_start(
            self._hva, slot.range.size, ctypes.addressof(self._words)
        )

    def take(self) -> bytes:
        """A bit for each page since the last time, in words of 64."""
        if not self._is_watched:
            return ((1 << self._pages) - 1).to_bytes(8 * len(self._words), "little")
        taken = (ctypes.c_uint64 * len(self._words))()
        self._library.kvm_log_take(ctypes.addressof(self._words), ctypes.addressof(taken))
        return bytes(taken)

    def close(self) -> None:
        """Nobody asks any more."""
        if self._is_watched:
            self._library.kvm_log_stop(ctypes.addressof(self._words))
