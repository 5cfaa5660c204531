"""The GUIDed table below the reset vector (edk2 OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm).

It is read backwards: a footer 48 bytes before the end of the file, then entries ``data, u16 length, GUID``.
"""

from __future__ import annotations

from typing import NamedTuple

from casemate.address import PAGE_SIZE
from casemate.errors import ImageError
from casemate.firmware import guids

FOOTER_OFFSET = 48
"""Where the footer GUID starts, in bytes before the end of the file."""
_TRAILER = 18
"""Bytes that close each entry: u16 length and GUID; the length counts them in."""


class TableEntry(NamedTuple):
    """One entry: its GUID and data, and where the data starts in the file."""

    guid: bytes
    data: bytes
    offset: int

    @property
    def name(self) -> str:
        """What the entry is called, or its GUID where nobody here knows it."""
        return guids.TABLE_ENTRY_NAMES.get(self.guid) or guids.guid_text(self.guid)


class GuestArea(NamedTuple):
    """A piece of guest memory that the firmware sets apart for the launch."""

    base: int
    size: int

    @property
    def is_usable(self) -> bool:
        """Whether the build really set memory apart: generic builds carry the entry with base 0."""
        return self.base != 0 and self.size != 0


class GuidedTable(NamedTuple):
    """All entries, from the end of the file downwards."""

    entries: tuple[TableEntry, ...]
    name: str

    def find(self, guid: bytes, size: int) -> TableEntry | None:
        """The first entry of this GUID, or None. Raises ImageError if it holds fewer than ``size`` bytes."""
        entry = next((entry for entry in self.entries if entry.guid == guid), None)
        if entry is not None and len(entry.data) < size:
            cause = f"{entry.name} holds {len(entry.data)} bytes where {size} are expected"
            raise ImageError(self.name, cause, "the image is damaged", entry.offset)
        return entry

    @property
    def sev_es_reset(self) -> int | None:
        """CS:IP of SEV-ES application processors. Raises ImageError if it is zero."""
        entry = self.find(guids.SEV_ES_RESET_BLOCK, 4)
        if entry is None:
            return None
        address = int.from_bytes(entry.data[:4], "little")
        if address == 0:
            raise ImageError(self.name, "the SEV-ES reset address is zero", "use another build", entry.offset)
        return address

    @property
    def sev_hashes(self) -> GuestArea | None:
        """Where the kernel-hashes table goes."""
        return self._area(guids.SEV_HASH_TABLE_BLOCK)

    @property
    def sev_secret(self) -> GuestArea | None:
        """Where the launch secret goes."""
        return self._area(guids.SEV_SECRET_BLOCK)

    def _area(self, guid: bytes) -> GuestArea | None:
        entry = self.find(guid, 8)
        if entry is None:
            return None
        return GuestArea(int.from_bytes(entry.data[:4], "little"), int.from_bytes(entry.data[4:8], "little"))


def parse_guided_table(data: bytes, name: str) -> GuidedTable | None:
    """The table of an image, or None if it has no footer. Raises ImageError if the table is broken."""
    footer = len(data) - FOOTER_OFFSET
    if len(data) < PAGE_SIZE or data[footer : footer + guids.GUID_SIZE] != guids.TABLE_FOOTER:
        return None
    end = footer - 2
    total = int.from_bytes(data[end:footer], "little")
    if not _TRAILER <= total <= footer + guids.GUID_SIZE:
        raise ImageError(name, f"the GUIDed table claims {total} bytes", "the image is damaged", end)
    start = footer + guids.GUID_SIZE - total
    return GuidedTable(tuple(_entries(data, start, end, name)), name)


def _entries(data: bytes, start: int, end: int, name: str) -> list[TableEntry]:
    found = []
    while end > start:
        length = int.from_bytes(data[max(end - _TRAILER, 0) : end - guids.GUID_SIZE], "little")
        if not _TRAILER <= length <= end - start:
            cause = f"a GUIDed table entry claims {length} bytes where {end - start} are left"
            raise ImageError(name, cause, "the image is damaged", max(end - _TRAILER, 0))
        body = end - length
        found.append(TableEntry(data[end - guids.GUID_SIZE : end], data[body : end - _TRAILER], body))
        end = body
    return found


def metadata_start(data: bytes, table: GuidedTable | None, guid: bytes) -> int | None:
    """File offset that an entry of ``guid`` points to, counted from the end. Raises ImageError if outside."""
    entry = table.find(guid, 4) if table else None
    if table is None or entry is None:
        return None
    from_end = int.from_bytes(entry.data[:4], "little")
    if not 0 < from_end <= len(data):
        cause = f"{entry.name} points {from_end:#x} bytes before the end of a file of {len(data):#x} bytes"
        raise ImageError(table.name, cause, "the image is damaged or truncated", entry.offset)
    return len(data) - from_end
