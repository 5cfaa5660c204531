"""ELF files for x86 as a loader sees them: what goes where, the entry, the notes (System V ABI, chapters 4 and 5)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from casemate.errors import ImageError

MAGIC = b"\x7fELF"
LARGEST = 512 << 20
"""Bytes of all segments together."""
_LITTLE_ENDIAN = 1
_MACHINES = {1: 3, 2: 62}
"""Of each class: i386, x86-64."""
_LOAD, _NOTE = 1, 4


class Segment(NamedTuple):
    """What is loaded to ``gpa``; ``size`` in memory may be more than there are bytes of data, the rest is zero."""

    gpa: int
    data: bytes | memoryview
    size: int

    @property
    def end(self) -> int:
        """Behind its last byte in memory."""
        return self.gpa + max(self.size, len(self.data))


class Note(NamedTuple):
    """One entry of a note segment."""

    owner: bytes
    kind: int
    data: bytes


class _Header(NamedTuple):
    kind: int
    offset: int
    linear: int
    gpa: int
    in_file: int
    in_memory: int


@dataclass(frozen=True, slots=True)
class ElfImage:
    """An executable of 32 or 64 ``bits``, by physical addresses."""

    bits: int
    entry: int
    segments: tuple[Segment, ...]
    notes: tuple[Note, ...]

    @classmethod
    def from_bytes(cls, image: bytes, path: Path | str) -> ElfImage:
        """Read it; ``path`` names it in errors. Raises ImageError for what is not x86's, or not whole."""
        kind = image[4] if image.startswith(MAGIC) and len(image) >= 64 else 0
        if kind not in _MACHINES or image[5] != _LITTLE_ENDIAN:
            raise ImageError(path, "this is no whole ELF file of a known kind", "give one for x86")
        (machine,) = struct.unpack_from("<H", image, 18)
        if machine != _MACHINES[kind]:
            raise ImageError(path, f"this ELF file is for machine {machine}", "give one for x86", 18)
        headers = list(_headers(image, is_64=kind == 2))
        segments, size, whole = [], 0, memoryview(image)
        for header in headers:
            if header.kind != _LOAD or not header.in_memory:
                continue
            data = whole[header.offset : header.offset + header.in_file]
            if len(data) != header.in_file:
                raise ImageError(path, "the file ends inside of a segment", "get it anew", header.offset)
            size += max(header.in_memory, len(data))
            if size > LARGEST:
                raise ImageError(path, f"its segments have over {LARGEST >> 20} MiB", "give a smaller one")
            segments.append(Segment(header.gpa, data, header.in_memory))
        if not segments:
            raise ImageError(path, "this ELF file has nothing to load", "give an executable")
        (entry,) = struct.unpack_from("<Q" if kind == 2 else "<I", image, 24)
        return cls(32 * kind, _physical(entry, headers), tuple(segments), tuple(_notes(image, headers)))


def _headers(image: bytes, *, is_64: bool) -> Iterator[_Header]:
    if is_64:
        (start,) = struct.unpack_from("<Q", image, 32)
        size, count = struct.unpack_from("<HH", image, 54)
    else:
        (start,) = struct.unpack_from("<I", image, 28)
        size, count = struct.unpack_from("<HH", image, 42)
    least = 56 if is_64 else 32
    for at in range(start, start + size * count, max(size, least)):
        if at + least > len(image):
            return
        if is_64:
            kind, _, offset, linear, gpa, in_file, in_memory = struct.unpack_from("<IIQQQQQ", image, at)
        else:
            kind, offset, linear, gpa, in_file, in_memory = struct.unpack_from("<6I", image, at)
        yield _Header(kind, offset, linear, gpa, in_file, in_memory)


def _physical(entry: int, headers: list[_Header]) -> int:
    """Where the entry is, which a file may give by its linear address."""
    loaded = [header for header in headers if header.kind == _LOAD]
    if any(header.gpa <= entry < header.gpa + header.in_memory for header in loaded):
        return entry
    return next(
        (
            entry - header.linear + header.gpa
            for header in loaded
            if header.linear <= entry < header.linear + header.in_memory
        ),
        entry,
    )


def _notes(image: bytes, headers: list[_Header]) -> Iterator[Note]:
    for header in headers:
        if header.kind != _NOTE:
            continue
        at, end = header.offset, min(header.offset + header.in_file, len(image))
        while at + 12 <= end:
            owner_size, size, kind = struct.unpack_from("<III", image, at)
            data_at = at + 12 + (owner_size + 3 & ~3)
            if data_at + size > end:
                break
            yield Note(
                image[at + 12 : at + 12 + owner_size].rstrip(b"\0"), kind, image[data_at : data_at + size]
            )
            at = data_at + (size + 3 & ~3)
