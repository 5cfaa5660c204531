"""Files of private memory, and which pages of a VM are private (Linux guest_memfd.c; api.rst, 4.140 and 4.142).

The monitor's descriptor has no access to the contents (O_PATH): it can be closed, looked at and given to fallocate(2).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from errno import EEXIST, EINVAL, EOPNOTSUPP
from typing import Protocol

from casemate.abi.kvm.guest_memfd import UserspaceMemoryRegion2
from casemate.address import PAGE_SIZE
from casemate.host.slots import MemorySlot
from casemate.userkvm.library import Kind, load
from casemate.userkvm.table import Refused

KEEP_SIZE, PUNCH_HOLE = 1, 2
"""Modes of fallocate(2)."""
_MADV_REMOVE = 9


class GuestMemfd:
    """A file of ``size`` bytes that belongs to one VM. ``fd`` is the monitor's."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.is_closed = False
        """The monitor has no descriptor of it any more; slots may still be bound to it."""
        self._bound: dict[int, range] = {}
        file = os.memfd_create("casemate-guest-memfd", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, size)
            self._memory = mmap.mmap(file, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self.fd = os.open(f"/proc/self/fd/{file}", os.O_PATH | os.O_CLOEXEC)
        finally:
            os.close(file)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.inode = os.fstat(self.fd).st_ino
        load().kvm_register_descriptor(self.fd, Kind.GUEST_MEMFD, number)

    def bind(self, slot: int, offset: int, size: int) -> None:
        """Pages of a slot are in this part. Raises Refused."""
        wanted = range(offset, offset + size)
        if offset % PAGE_SIZE or wanted.stop > self.size:
            raise Refused(EINVAL, "misaligned, or beyond the end of the file")
        if any(other.start < wanted.stop and wanted.start < other.stop for other in self._bound.values()):
            raise Refused(EEXIST, "another slot has a part of it")
        self._bound[slot] = wanted

    def unbind(self, slot: int) -> None:
        """The slot is gone."""
        self._bound.pop(slot, None)

    def hva(self, slot: int) -> int:
        """Where the start of the slot's pages is in this process."""
        return self.address + self._bound[slot].start

    def allocate(self, mode: int, offset: int, size: int) -> None:
        """fallocate(2): allocate, or give up what is there. Raises Refused."""
        if mode not in (KEEP_SIZE, KEEP_SIZE | PUNCH_HOLE):
            raise Refused(EOPNOTSUPP, f"mode {mode}")
        if offset < 0 or size <= 0 or (offset | size) % PAGE_SIZE:
            raise Refused(EINVAL, "misaligned")
        if mode & PUNCH_HOLE:
            end = min(offset + size, self.size)
            if offset < end:
                self._memory.madvise(_MADV_REMOVE, offset, end - offset)
        elif offset + size > self.size:
            raise Refused(EINVAL, "beyond the end of the file")


class SlotOwner(Protocol):
    """What ``bind_memfd`` needs of a VM (``casemate.userkvm.vm.Vm``)."""

    memfds: dict[int, GuestMemfd]


def bind_memfd(vm: SlotOwner, value: UserspaceMemoryRegion2) -> GuestMemfd:
    """The file that a slot names, with the slot's part taken. Raises Refused."""
    try:
        inode = os.fstat(value.guest_memfd).st_ino
    except (OSError, OverflowError):
        raise Refused(EINVAL, f"no descriptor {value.guest_memfd}") from None
    found = next((file for file in vm.memfds.values() if file.inode == inode), None)
    if found is None:
        raise Refused(EINVAL, f"descriptor {value.guest_memfd} is no private memory of this VM")
    found.bind(value.slot, value.guest_memfd_offset, value.memory_size)
    return found


class PrivateRanges:
    """Which guest-physical addresses have the attribute "private", at first none."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def set(self, start: int, end: int, *, private: bool) -> None:
        """From now on."""
        kept = []
        for first, last in self._ranges:
            kept += [(first, min(last, start)), (max(first, end), last)]
        found = [(first, last) for first, last in kept if first < last]
        self._ranges = sorted([*found, (start, end)] if private else found)

    def contains(self, gpa: int) -> bool:
        """Whether an address is private."""
        return any(first <= gpa < last for first, last in self._ranges)

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """``[start, end)`` in parts that are alike: start, end, whether private."""
        at = start
        for first, last in self._ranges:
            if last <= at or first >= end:
                continue
            if at < first:
                yield at, first, False
            yield max(at, first), min(last, end), True
            at = min(last, end)
        if at < end:
            yield at, end, False


def pieces_of(
    slot: MemorySlot, ranges: PrivateRanges, file: GuestMemfd | None
) -> Iterator[tuple[int, int, int]]:
    """The memory behind a slot as of now: start, end, address here. Private pages without a file have none."""
    for start, end, is_private in ranges.runs(slot.range.start, slot.range.end):
        offset = start - slot.range.start
        if not is_private:
            if slot.hva:
                yield start, end, slot.hva + offset
        elif file is not None:
            yield start, end, file.hva(slot.number) + offset
