"""What of a firmware image lies at an offset: volume and file, or variable (UEFI PI 1.8 vol. 3, chapter 2)."""

from __future__ import annotations

from casemate.evidence.store_map import StoreMap
from casemate.firmware.guids import guid_text
from casemate.firmware.volume import file_at
from casemate.firmware.volume_header import VolumeHeader, find_volumes


def owner_of(data: bytes, offset: int) -> str:
    """Words about the byte at ``offset`` of an image; compressed volumes stay closed."""
    for volume in find_volumes(data):
        if volume.offset <= offset < volume.end:
            what = "variable store" if volume.holds_variables else "firmware volume"
            return f"{what} at {volume.offset:#x}, {_inside(data, volume, offset - volume.offset)}"
    return "in no firmware volume"


def _inside(data: bytes, volume: VolumeHeader, offset: int) -> str:
    if offset < volume.header_length:
        return "its header"
    if volume.holds_variables:
        part, _ = next(StoreMap(memoryview(data)[volume.offset :]).pieces(offset, offset + 1))
        return f"variable {part.name}" if part.vendor else part.name
    file = file_at(data, volume, offset)
    if file is None:
        return "outside of its files"
    return "padding" if file.is_padding else f"file {file.name or guid_text(file.guid)} ({file.type_name})"
