"""Which memory is watched for writes of the monitor into code (``native/kvm/coherence.c``; Linux userfaultfd(2))."""

from __future__ import annotations

import ctypes

from casemate.address import PAGE_SIZE
from casemate.host.model.cpu.records import PAGES
from casemate.host.slots import MemorySlot
from casemate.userkvm.library import CODE_SLOTS, VcpuRecord, load


class CodeWatch:
    """One vCPU's. Of an encrypted guest nothing is watched: the monitor cannot write code of its."""

    def __init__(self, record: VcpuRecord, address: int, marks: int, fetches: int) -> None:
        self._record = record
        self._library = load()
        self._marks = marks
        self._seen: dict[MemorySlot, ctypes.Array[ctypes.c_uint8]] = {}
        """Which pages of a slot are protected, a byte each."""
        record.fetches = fetches
        self.before_store: int = ctypes.cast(self._library.kvm_before_store, ctypes.c_void_p).value or 0
        """Address of what the CPU model calls before it stores to a page with code."""
        self._library.kvm_watch_vcpu(address, 1)

    def set(self, slots: list[MemorySlot]) -> None:
        """These are the slots now; between two runs. What cannot be watched is left out."""
        self._record.code_count = 0
        fitting = [slot for slot in slots if _has_marks(slot)]
        if len(fitting) > CODE_SLOTS:
            fitting = sorted(fitting, key=lambda slot: -slot.range.size)[:CODE_SLOTS]
        before, self._seen = self._seen, {}
        for slot in fitting:
            if slot in before:
                self._seen[slot] = before[slot]
            elif not self._library.kvm_watch_memory(slot.hva, slot.range.size):
                self._seen[slot] = (ctypes.c_uint8 * (slot.range.size // PAGE_SIZE))()
                self._record.must_protect = 1
        for code, (slot, seen) in zip(self._record.code, self._seen.items(), strict=False):
            code.host, code.pages, code.seen = slot.hva, len(seen), ctypes.addressof(seen)
            code.marks = self._marks + slot.range.start // PAGE_SIZE % PAGES
        self._record.code_count = len(self._seen)


def _has_marks(slot: MemorySlot) -> bool:
    """Marks begin anew every 64 GiB; a slot needs its in one piece."""
    return slot.range.start // PAGE_SIZE % PAGES + slot.range.size // PAGE_SIZE <= PAGES
