"""Whose each byte of a variable store is (edk2 MdeModulePkg/Include/Guid/VariableFormat.h, VarStore.fdf.inc)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from casemate.firmware.variables import (
    START_ID,
    RecordFault,
    align,
    header_size,
    next_offset,
    parse_record,
)
from casemate.firmware.varstore import HEADER_SIZE, StoreLayout, parse_variable_store
from casemate.firmware.volume_header import parse_volume_header


class Part(NamedTuple):
    """Bytes from ``start`` on, up to the next part: a variable's (``vendor`` is its GUID), or something else's."""

    start: int
    name: str
    vendor: bytes | None = None


_ELSEWHERE = Part(0, "outside of a variable store")


class StoreMap:
    """The parts of a flash unit, by what it holds now. A unit without a variable store is one part."""

    def __init__(self, contents: memoryview) -> None:
        self._parts = [_ELSEWHERE, *_parts(contents)]
        self._starts = [part.start for part in self._parts]

    def pieces(self, start: int, end: int) -> Iterator[tuple[Part, int]]:
        """The parts that ``[start, end)`` touches, and how many of its bytes lie in each."""
        index = bisect_right(self._starts, start) - 1
        while start < end:
            following = self._starts[index + 1] if index + 1 < len(self._starts) else end
            stop = min(end, following)
            yield self._parts[index], stop - start
            start, index = stop, index + 1


def _parts(contents: memoryview) -> Iterator[Part]:
    volume = parse_volume_header(contents)
    if volume is None or not volume.holds_variables or volume.end > len(contents):
        return
    layout = StoreLayout(volume.length)
    data = bytes(contents[: layout.end])
    store = parse_variable_store(data, volume)
    yield Part(0, "store header")
    if store is not None:
        yield from _records(data[store.offset :], store.offset, authenticated=store.is_authenticated)
    yield Part(layout.end, "event log")
    yield Part(layout.work, "fault-tolerant write: work block")
    yield Part(layout.spare, "fault-tolerant write: spare block")
    yield Part(volume.end, _ELSEWHERE.name)


def _records(store: bytes, base: int, *, authenticated: bool) -> Iterator[Part]:
    offset, header = align(HEADER_SIZE), header_size(authenticated)
    while store[offset : offset + 2] == START_ID and offset + header <= len(store):
        try:
            variable = parse_record(store, offset, authenticated=authenticated).variable
            yield Part(base + offset, variable.name, variable.guid)
        except RecordFault:
            yield Part(base + offset, "damaged record")
        offset = next_offset(store, offset, authenticated=authenticated)
    if offset < len(store):
        yield Part(base + offset, "free space")
