"""What protection the host mappings of this process really have (Linux proc(5), /proc/pid/maps).

Since Linux 6.11 the file answers for one address (include/uapi/linux/fs.h, PROCMAP_QUERY). Before that it is read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

from casemate.errors import HostError

_MAPS = "/proc/self/maps"
_CHUNK = 1 << 16
_PROCMAP_QUERY, _READABLE, _WRITABLE = 0xC068_6611, 1, 2
_QUERY, _QUERY_BYTES = struct.Struct("<5Q"), 104
"""The first fields of struct procmap_query: size, wanted protection, address; start and end of the mapping there."""
_held: dict[int, int] = {}
"""The open file of a process that will open no other, by the process's number: a child's mappings are others."""


def hold_maps() -> None:
    """Open the file of mappings for the rest of this process, which is about to give up opening files."""
    _held[os.getpid()] = os.open(_MAPS, os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def _maps() -> Iterator[int]:
    """The open file. Raises HostError where there is no /proc."""
    held = _held.get(os.getpid())
    if held is not None:
        yield held
        return
    try:
        opened = os.open(_MAPS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        remedy = "mount /proc: the modelled host looks there for the protection of memory"
        raise HostError("open", error.errno or 0, _MAPS, remedy) from None
    try:
        yield opened
    finally:
        os.close(opened)


def _lines(maps: int) -> Generator[bytes, None, None]:
    """A line for each mapping, by address, read as far as they are asked for."""
    at, rest = 0, b""
    while chunk := os.pread(maps, _CHUNK, at):
        at += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def is_writable(hva: int, size: int) -> bool:
    """Whether all of ``[hva, hva + size)`` is mapped with PROT_WRITE, as KVM finds when it pins a page for writing."""
    return _is_mapped(hva, size, _READABLE | _WRITABLE)


def is_readable(hva: int, size: int) -> bool:
    """Whether all of ``[hva, hva + size)`` is mapped with PROT_READ."""
    return _is_mapped(hva, size, _READABLE)


def _is_mapped(hva: int, size: int, wanted: int) -> bool:
    with _maps() as maps:
        try:
            return _answers(maps, hva, hva + size, wanted)
        except OSError:  # an older kernel, or a filter of system calls
            return _says(maps, hva, hva + size, b"rw" if wanted & _WRITABLE else b"r")


def _answers(maps: int, hva: int, end: int, wanted: int) -> bool:
    """By PROCMAP_QUERY. Raises OSError where the kernel has none."""
    while hva < end:
        query = bytearray(_QUERY_BYTES)
        _QUERY.pack_into(query, 0, _QUERY_BYTES, wanted, hva, 0, 0)
        try:
            fcntl.ioctl(maps, _PROCMAP_QUERY, query)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        hva = _QUERY.unpack_from(query)[-1]
    return True


def _says(maps: int, hva: int, end: int, permissions: bytes) -> bool:
    """By the lines of the file."""
    with closing(_lines(maps)) as lines:
        for line in lines:
            start_text, _, rest = line.partition(b"-")
            end_text, _, found = rest.partition(b" ")
            vma_end = int(end_text, 16)
            if vma_end <= hva:
                continue
            if int(start_text, 16) > hva or not found.startswith(permissions):
                return False
            if vma_end >= end:
                return True
            hva = vma_end
    return False
