"""TDX metadata: the sections that a TD is built from (Intel TDX Virtual Firmware Design Guide)."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from casemate.address import PAGE_SIZE
from casemate.errors import ImageError
from casemate.firmware import guids
from casemate.firmware.guided_table import GuidedTable, metadata_start

_HEADER = struct.Struct("<4sIII")
_SECTION = struct.Struct("<IIQQII")
_SIGNATURE = b"TDVF"
_REMEDY = "TDX needs an image built for it, variables and code in one file"


class TdvfSectionType(IntEnum):
    """What a section is (TDVF Design Guide); images with the types from 4 on are refused, as QEMU does."""

    BFV = 0
    CFV = 1
    TD_HOB = 2
    TEMP_MEM = 3

    @property
    def is_from_file(self) -> bool:
        """Whether the section's contents come out of the image."""
        return self in (TdvfSectionType.BFV, TdvfSectionType.CFV)


class TdvfSection(NamedTuple):
    """One section: a piece of the file (offset and bytes) and the guest memory that it fills."""

    data_offset: int
    raw_size: int
    base: int
    size: int
    type: TdvfSectionType
    attributes: int

    @property
    def is_measured(self) -> bool:
        """MR.EXTEND: the contents enter MRTD."""
        return bool(self.attributes & 1)


class TdvfMetadata(NamedTuple):
    """All sections in file order."""

    sections: tuple[TdvfSection, ...]


def parse_tdvf(data: bytes, table: GuidedTable | None, name: str) -> TdvfMetadata | None:
    """The metadata that ``table`` points to, None without an entry. Raises ImageError if it is broken."""
    start = metadata_start(data, table, guids.TDX_METADATA_OFFSET)
    if start is None:
        return None
    if start < guids.GUID_SIZE or data[start - guids.GUID_SIZE : start] != guids.TDVF_HEADER:
        raise ImageError(name, "no TDVF GUID before the TDX metadata", _REMEDY, start - guids.GUID_SIZE)
    count = _validate_header(data, start, name)
    first = start + _HEADER.size
    sections = tuple(_section(data, first + index * _SECTION.size, name) for index in range(count))
    if not any(section.type is TdvfSectionType.TD_HOB for section in sections):
        raise ImageError(name, "TDX metadata names no place for the TD HOB", _REMEDY, start)
    return TdvfMetadata(sections)


def _validate_header(data: bytes, start: int, name: str) -> int:
    if start + _HEADER.size > len(data):
        raise ImageError(name, "TDX metadata runs over the end of the file", _REMEDY, start)
    signature, length, version, count = _HEADER.unpack_from(data, start)
    if signature != _SIGNATURE:
        raise ImageError(name, f"TDX metadata starts with {signature!r}, not {_SIGNATURE!r}", _REMEDY, start)
    if version != 1:
        raise ImageError(name, f"TDX metadata has version {version}, not 1", _REMEDY, start + 8)
    if count < 2:
        raise ImageError(
            name, f"TDX metadata has {count} sections where two are the least", _REMEDY, start + 12
        )
    expected = _HEADER.size + count * _SECTION.size
    if length != expected:
        cause = f"TDX metadata is {length} bytes long where {count} sections take {expected}"
        raise ImageError(name, cause, _REMEDY, start + 4)
    if start + length > len(data):
        raise ImageError(name, "TDX metadata runs over the end of the file", _REMEDY, start)
    return int(count)


def _section(data: bytes, offset: int, name: str) -> TdvfSection:
    data_offset, raw_size, base, size, number, attributes = _SECTION.unpack_from(data, offset)
    if number not in TdvfSectionType.__members__.values():
        raise ImageError(name, f"TDX section of unsupported type {number}", _REMEDY, offset + 24)
    section = TdvfSection(data_offset, raw_size, base, size, TdvfSectionType(number), attributes)
    if fault := _fault(section):
        raise ImageError(name, f"TDX section {section.type.name}: {fault}", _REMEDY, offset)
    return section


def _fault(section: TdvfSection) -> str | None:
    if section.size < section.raw_size:
        return f"{section.raw_size:#x} bytes of data for {section.size:#x} bytes of memory"
    if section.base % PAGE_SIZE:
        return f"address {section.base:#x} is not a multiple of 4 KiB"
    if section.size % PAGE_SIZE:
        return f"memory size {section.size:#x} is not a multiple of 4 KiB"
    if section.type.is_from_file and section.raw_size == 0:
        return "there is no data"
    if not section.type.is_from_file and section.raw_size:
        return f"{section.raw_size:#x} bytes of data where none may be"
    return None
