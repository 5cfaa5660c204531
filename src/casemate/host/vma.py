"""What protection the host mappings of this process really have (Linux proc(5), /proc/pid/maps)."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import closing

from casemate.errors import HostError

_MAPS = "/proc/self/maps"
_CHUNK = 1 << 16
_held: dict[int, int] = {}
"""The open file of a process that will open no other, by the process's number: a child's mappings are others."""


def hold_maps() -> None:
    """Open the file of mappings for the rest of this process, which is about to give up opening files."""
    _held[os.getpid()] = os.open(_MAPS, os.O_RDONLY | os.O_CLOEXEC)


def _mappings() -> Generator[bytes, None, None]:
    """A line for each, by address, read as far as they are asked for. Raises HostError where there is no /proc."""
    held = _held.get(os.getpid())
    try:
        if held is None:
            with open(_MAPS, "rb", buffering=_CHUNK) as maps:
                yield from maps
            return
        at, rest = 0, b""
        while chunk := os.pread(held, _CHUNK, at):
            at += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
    except OSError as error:
        remedy = "mount /proc: the modelled host looks there for the protection of memory"
        raise HostError("open", error.errno or 0, _MAPS, remedy) from None


def is_writable(hva: int, size: int) -> bool:
    """Whether all of ``[hva, hva + size)`` is mapped with PROT_WRITE, as KVM finds when it pins a page for writing."""
    return _is_mapped(hva, size, b"rw")


def is_readable(hva: int, size: int) -> bool:
    """Whether all of ``[hva, hva + size)`` is mapped with PROT_READ."""
    return _is_mapped(hva, size, b"r")


def _is_mapped(hva: int, size: int, permissions: bytes) -> bool:
    end = hva + size
    with closing(_mappings()) as lines:
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
