"""SEV metadata: the pages an SNP launch prepares (edk2 OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm)."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from casemate.errors import ImageError
from casemate.firmware import guids
from casemate.firmware.guided_table import GuidedTable, metadata_start

_HEADER = struct.Struct("<4sIII")
_SECTION = struct.Struct("<III")
_SIGNATURE = b"ASEV"
_REMEDY = "the image is damaged; SNP needs another one"


class SevSectionType(IntEnum):
    """What a section is for (OvmfSevMetadata.asm)."""

    SNP_SEC_MEM = 1
    SNP_SECRETS = 2
    CPUID = 3
    SVSM_CAA = 4
    KERNEL_HASHES = 0x10


class SevSection(NamedTuple):
    """A range of guest memory to prepare; ``type`` may be a number that ``SevSectionType`` does not know."""

    base: int
    size: int
    type: int


class SevMetadata(NamedTuple):
    """All sections in file order."""

    sections: tuple[SevSection, ...]

    def has(self, kind: SevSectionType) -> bool:
        """Whether a section of this type sets memory apart."""
        return any(section.type == kind and section.size for section in self.sections)


def parse_sev_metadata(data: bytes, table: GuidedTable | None, name: str) -> SevMetadata | None:
    """The metadata that ``table`` points to, None without an entry. Raises ImageError if it is broken."""
    start = metadata_start(data, table, guids.SEV_METADATA_OFFSET)
    if start is None:
        return None
    if start + _HEADER.size > len(data):
        raise ImageError(name, "SEV metadata runs over the end of the file", _REMEDY, start)
    signature, length, version, count = _HEADER.unpack_from(data, start)
    expected = _HEADER.size + count * _SECTION.size
    if signature != _SIGNATURE:
        raise ImageError(name, f"SEV metadata starts with {signature!r}, not {_SIGNATURE!r}", _REMEDY, start)
    if version != 1:
        raise ImageError(name, f"SEV metadata has version {version}, not 1", _REMEDY, start + 8)
    if length != expected:
        cause = f"SEV metadata is {length} bytes long where {count} sections take {expected}"
        raise ImageError(name, cause, _REMEDY, start + 4)
    if start + length > len(data):
        raise ImageError(name, "SEV metadata runs over the end of the file", _REMEDY, start)
    sections = _SECTION.iter_unpack(data[start + _HEADER.size : start + length])
    return SevMetadata(tuple(SevSection(*fields) for fields in sections))
