"""The header that starts every firmware volume (UEFI PI 1.8 vol. 3, 2.2.2 EFI_FIRMWARE_VOLUME_HEADER)."""

import struct
from typing import NamedTuple

from casemate.firmware import guids

_HEADER = struct.Struct("<16s16sQ4sIHHHBB")
_SIGNATURE = b"_FVH"
_SIGNATURE_OFFSET = 40
_CHECKSUM = 50
_ATTRIBUTES = 0x4FEFF
_SIZE = 72
_REVISION = 2


class VolumeHeader(NamedTuple):
    """One volume: where it starts in the file, what its header claims, and whether the checksum is right."""

    offset: int
    """Bytes from the start of the file."""
    length: int
    """Bytes of the whole volume, header included."""
    header_length: int
    file_system: bytes
    checksum_ok: bool

    @property
    def end(self) -> int:
        """First byte behind the volume, if its length is true."""
        return self.offset + self.length

    @property
    def holds_variables(self) -> bool:
        """Whether this is the volume of a variable store."""
        return self.file_system == guids.NVRAM_VOLUME


def build_volume_header(length: int, file_system: bytes) -> bytes:
    """A header of 72 bytes, as edk2 builds have it, for a volume of ``length`` bytes in blocks of 4 KiB."""
    blocks = struct.pack("<IIII", max(length >> 12, 1), 4096, 0, 0)
    fields = _HEADER.pack(bytes(16), file_system, length, _SIGNATURE, _ATTRIBUTES, _SIZE, 0, 0, 0, _REVISION)
    words = struct.unpack("<36H", fields + blocks)
    return fields[:_CHECKSUM] + struct.pack("<H", -sum(words) & 0xFFFF) + fields[_CHECKSUM + 2 :] + blocks


def parse_volume_header(data: bytes | memoryview, offset: int = 0) -> VolumeHeader | None:
    """The volume header at ``offset``, or None if there is none."""
    if offset < 0 or offset + _HEADER.size > len(data):
        return None
    _, file_system, length, signature, _, header_length, *_ = _HEADER.unpack_from(data, offset)
    if signature != _SIGNATURE or not _HEADER.size <= header_length <= min(length, len(data) - offset):
        return None
    words = data[offset : offset + (header_length & ~1)]
    total = sum(struct.unpack(f"<{len(words) // 2}H", words))
    return VolumeHeader(offset, length, header_length, file_system, total & 0xFFFF == 0)


def find_volumes(data: bytes) -> list[VolumeHeader]:
    """The volumes that lie open in ``data``, in file order; what a volume contains is not searched."""
    found: list[VolumeHeader] = []
    position = 0
    while (hit := data.find(_SIGNATURE, position)) >= 0:
        header = parse_volume_header(data, hit - _SIGNATURE_OFFSET)
        if header is None or not header.checksum_ok:
            position = hit + 1
            continue
        found.append(header)
        position = max(hit + 1, header.end)
    return found
