"""Writes that KVM keeps for later instead of leaving to its user (Linux api.rst, KVM_REGISTER_COALESCED_MMIO)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from mmap import mmap
from struct import Struct as Layout

from casemate.abi.kvm.structs import CoalescedMmio, CoalescedMmioRing
from casemate.address import PAGE_SIZE

_WORD = 4
_ENTRY = Layout("<QII8s")
ENTRIES = (PAGE_SIZE - CoalescedMmioRing.SIZE) // CoalescedMmio.SIZE
"""KVM_COALESCED_MMIO_MAX; one of them always stays empty."""


class CoalescedRing:
    """A VM's one ring of such writes, seen from ``offset`` on in the ``area`` that a vCPU shares with KVM.

    ``lock`` is the same for all vCPUs of the VM.
    """

    def __init__(self, area: mmap, offset: int, lock: threading.Lock) -> None:
        self.first = offset // _WORD
        """Where ``area`` has the index of the oldest write, in 32-bit words."""
        self.last = self.first + 1
        """Where it has the index behind the newest; the ring is empty if both are the same."""
        self._area = area
        self._entries = offset + CoalescedMmioRing.SIZE
        self._lock = lock

    def is_filled(self, words: memoryview) -> bool:
        """Whether there are any."""
        return bool(words[self.first] != words[self.last])

    def deliver(self, words: memoryview, write: Callable[[int, int, int], None]) -> None:
        """Hand all of them to ``write``, in the order in which they were made; ``words`` are those of the area."""
        with self._lock:
            while (at := words[self.first]) != words[self.last]:
                gpa, size, _, data = _ENTRY.unpack_from(self._area, self._entries + at * _ENTRY.size)
                write(gpa, size, int.from_bytes(data[:size], "little"))
                # Not earlier: another vCPU that finds the ring empty goes on with an access of its own.
                words[self.first] = (at + 1) % ENTRIES
