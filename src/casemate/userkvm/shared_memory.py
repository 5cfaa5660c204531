"""Memory of the monitor that can be mapped twice (Linux mmap(2), memfd_create(2), proc(5))."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from ctypes import c_int, c_long, c_size_t, c_void_p

from casemate.address import PAGE_SIZE
from casemate.errors import HostError

_MAP_FIXED = 0x10
_PRESENT_OR_SWAPPED = 62
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = c_void_p
_libc.mmap.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_long)


def share(hva: int, size: int) -> None:
    """Replace private mappings in this range by shared ones of the same contents, in place. Raises HostError."""
    for start, end, protection in list(_private_mappings(hva, size)):
        fd = os.memfd_create("casemate-shared", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, end - start)
            for first, last in _present(start, end):
                os.pwrite(fd, (ctypes.c_char * (last - first)).from_address(first), first - start)
            if _libc.mmap(start, end - start, protection, mmap.MAP_SHARED | _MAP_FIXED, fd, 0) != start:
                raise HostError("mmap", ctypes.get_errno(), f"{end - start:#x} bytes of guest memory")
        finally:
            os.close(fd)


def _private_mappings(hva: int, size: int) -> Iterator[tuple[int, int, int]]:
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            span, permissions, _ = line.split(maxsplit=2)
            start, end = (int(part, 16) for part in span.split("-"))
            start, end = max(start, hva), min(end, hva + size)
            if start < end and permissions[3] == "p" and permissions[0] == "r":
                writable = mmap.PROT_WRITE if permissions[1] == "w" else 0
                yield start, end, mmap.PROT_READ | writable


def _present(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts that have contents: the rest reads as zeros, before and after."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(start // PAGE_SIZE * 8)
        entries = pagemap.read((end - start) // PAGE_SIZE * 8)
    first: int | None = None
    for number, (entry,) in enumerate(struct.iter_unpack("<Q", entries)):
        at = start + number * PAGE_SIZE
        if entry >> _PRESENT_OR_SWAPPED and first is None:
            first = at
        elif not entry >> _PRESENT_OR_SWAPPED and first is not None:
            yield first, at
            first = None
    if first is not None:
        yield first, end
