"""Which memory is watched for writes of the monitor into code (``native/kvm/coherence.c``; Linux userfaultfd(2))."""

from __future__ import annotations

import ctypes
import mmap

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
        self._seen: list[mmap.mmap] = []
        record.fetches = fetches
        self._library.kvm_watch_vcpu(address, 1)

    def set(self, slots: list[MemorySlot]) -> None:
        """These are the slots now; between two runs. What cannot be watched is left out."""
        self._record.code_count = 0
        self._seen.clear()
        largest = sorted(filter(_has_marks, slots), key=lambda slot: -slot.range.size)[:CODE_SLOTS]
        watched = [slot for slot in largest if not self._library.kvm_watch_memory(slot.hva, slot.range.size)]
        for number, slot in enumerate(watched):
            pages = slot.range.size // PAGE_SIZE
            seen = mmap.mmap(-1, max(pages, PAGE_SIZE))
            self._seen.append(seen)
            code = self._record.code[number]
            code.host, code.pages = slot.hva, pages
            code.marks = self._marks + slot.range.start // PAGE_SIZE % PAGES
            code.seen = ctypes.addressof(ctypes.c_char.from_buffer(seen))
        self._record.code_count = len(watched)
        self._record.must_protect = 1


def _has_marks(slot: MemorySlot) -> bool:
    """Marks begin anew every 64 GiB; a slot needs its in one piece."""
    return slot.range.start // PAGE_SIZE % PAGES + slot.range.size // PAGE_SIZE <= PAGES
