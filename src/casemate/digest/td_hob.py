"""The TD HOB, by which a TD learns where its memory is (UEFI PI 1.8 vol. 3, chapter 5; QEMU hw/i386/tdvf-hob.c)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

from casemate.address import Gpa, GuestRange
from casemate.errors import SpecError
from casemate.firmware.image import FirmwareImage
from casemate.firmware.tdvf import TdvfMetadata, TdvfSection, TdvfSectionType

SYSTEM_MEMORY, MEMORY_UNACCEPTED = 0, 7
"""Resource types: memory that was added before the start, and memory that the TD is to accept."""

_HANDOFF, _RESOURCE, _END = 0x0001, 0x0003, 0xFFFF
_HEADER = struct.Struct("<HHI")
_HANDOFF_BODY = struct.Struct("<II4QQ")
_RESOURCE_BODY = struct.Struct("<16sIIQQ")
_VERSION = 9
_TESTED_MEMORY = 7
"""Present, initialized, tested: what QEMU says of all memory."""


def build_td_hob(image: FirmwareImage, metadata: TdvfMetadata, ram: Sequence[GuestRange]) -> bytes:
    """The list for a TD with this RAM, as long as it is; zeros follow it in the section.

    Raises SpecError if a section lies in no RAM, or the list does not fit.
    """
    section = next(section for section in metadata.sections if section.type is TdvfSectionType.TD_HOB)
    added = [s for s in metadata.sections if not s.type.is_from_file and s.size]
    resources = b"".join(
        _hob(_RESOURCE, _RESOURCE_BODY.pack(bytes(16), kind, _TESTED_MEMORY, start, end - start))
        for start, end, kind in _split(added, ram)
    )
    handoff_size = _HEADER.size + _HANDOFF_BODY.size
    end_of_list = section.base + handoff_size + len(resources) + _HEADER.size
    handoff = _hob(_HANDOFF, _HANDOFF_BODY.pack(_VERSION, 0, 0, 0, 0, 0, end_of_list))
    hob = handoff + resources + _hob(_END, b"")
    if len(hob) > section.size:
        cause = f"the TD HOB takes {len(hob):#x} bytes, its section in {image.name} has {section.size:#x}"
        raise SpecError(cause, "give the guest less fragmented memory")
    return hob


def _hob(kind: int, body: bytes) -> bytes:
    return _HEADER.pack(kind, _HEADER.size + len(body), 0) + body


def _split(added: Iterable[TdvfSection], ram: Sequence[GuestRange]) -> Iterator[tuple[int, int, int]]:
    """RAM in pieces (start, end, resource type), lowest first."""
    cuts = sorted((section.base, section.base + section.size) for section in added)
    for start, end in cuts:
        if not any(piece.start <= start and end <= piece.end for piece in ram):
            cause = f"TDX metadata section [{start:#x}, {end:#x}) lies in no RAM of this guest"
            raise SpecError(cause, "give it more --memory")
    for piece in sorted(ram, key=lambda piece: piece.start):
        at: int = piece.start
        for start, end in cuts:
            if piece.start <= start < piece.end:
                if at < start:
                    yield at, start, MEMORY_UNACCEPTED
                yield start, end, SYSTEM_MEMORY
                at = end
        if at < piece.end:
            yield at, piece.end, MEMORY_UNACCEPTED


def hob_section(metadata: TdvfMetadata) -> Gpa:
    """Where the list lies, which every vCPU is told at its start."""
    return Gpa(next(s.base for s in metadata.sections if s.type is TdvfSectionType.TD_HOB))
