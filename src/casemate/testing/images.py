"""Builders of small firmware images, with any metadata, broken on request (edk2 OvmfPkg/ResetVector).

    image = ImageBuilder(size=128 << 10).reset_block(0x80B004).hashes(0x80CC00, 0x400).build()

Everything is where real images have it, so that whatever reads real images reads these.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Self

from casemate.firmware import guids
from casemate.firmware.guided_table import FOOTER_OFFSET
from casemate.firmware.varstore import StoreLayout, build_volume
from casemate.firmware.volume_header import build_volume_header
from casemate.native.code import guest_code

HALT_AT_RESET = guest_code("guests/actions.halt").ljust(16, b"\x90")
"""Reset vector: CLI, HLT, and back to the HLT."""

_METADATA_FROM_END = 0x800
_TDX_METADATA_FROM_END = 0xC00


def volume_header(length: int, file_system: bytes = guids.FFS2) -> bytes:
    """A firmware volume's header of 72 bytes with a right checksum, for a volume of ``length`` bytes."""
    return build_volume_header(length, file_system)


def variable_store(size: int = 0x84000, authenticated: bool = True) -> bytes:
    """An empty, healthy variable store of ``size`` bytes, as the VARS templates of distributions are."""
    return build_volume(StoreLayout(size), (), authenticated=authenticated)


def kernel_loader(program: bytes) -> bytes:
    """A firmware file as edk2's driver that loads kernels is one, with ``program`` as its PE image."""
    name = _section(0x15, "QemuKernelLoaderFsDxe\0".encode("utf-16-le"))
    body = _section(0x10, b"MZ" + program) + name
    size = (24 + len(body)).to_bytes(3, "little")
    return bytes(16) + b"\0\0" + b"\x07\0" + size + b"\xf8" + body


def _section(kind: int, contents: bytes) -> bytes:
    data = struct.pack("<I", len(contents) + 4 | kind << 24) + contents
    return data + bytes(-len(data) % 4)


class ImageBuilder:
    """Collects what an image of ``size`` bytes shall contain; ``build`` puts it together."""

    def __init__(self, size: int = 128 << 10, volume: bool = False) -> None:
        self.size = size
        self._volume = b"" if volume else None
        self._entries: list[tuple[bytes, bytes]] = []
        self._pieces: list[tuple[int, bytes]] = [(16, HALT_AT_RESET)]

    def entry(self, guid: bytes, data: bytes) -> Self:
        """Add any entry to the GUIDed table."""
        self._entries.append((guid, data))
        return self

    def reset_block(self, address: int) -> Self:
        """CS:IP of SEV-ES application processors."""
        return self.entry(guids.SEV_ES_RESET_BLOCK, struct.pack("<I", address))

    def hashes(self, base: int, size: int = 0x400) -> Self:
        """The area for the kernel-hashes table."""
        return self.entry(guids.SEV_HASH_TABLE_BLOCK, struct.pack("<II", base, size))

    def secret(self, base: int, size: int = 0xC00) -> Self:
        """The area for the launch secret."""
        return self.entry(guids.SEV_SECRET_BLOCK, struct.pack("<II", base, size))

    def sev_metadata(
        self, *sections: tuple[int, int, int], version: int = 1, length: int | None = None
    ) -> Self:
        """SEV metadata of ``(base, size, type)`` sections; ``length`` overrides the true one."""
        body = b"".join(struct.pack("<III", *section) for section in sections)
        true_length = 16 + len(body) if length is None else length
        header = struct.pack("<4sIII", b"ASEV", true_length, version, len(sections))
        self.entry(guids.SEV_METADATA_OFFSET, struct.pack("<I", _METADATA_FROM_END))
        return self.piece(_METADATA_FROM_END, header + body)

    def tdx_metadata(self, sections: Sequence[tuple[int, int, int, int, int, int]], version: int = 1) -> Self:
        """TDX metadata of ``(data_offset, raw_size, base, size, type, attributes)`` sections."""
        body = b"".join(struct.pack("<IIQQII", *section) for section in sections)
        header = struct.pack("<4sIII", b"TDVF", 16 + len(body), version, len(sections))
        self.entry(guids.TDX_METADATA_OFFSET, struct.pack("<I", _TDX_METADATA_FROM_END))
        return self.piece(_TDX_METADATA_FROM_END + guids.GUID_SIZE, guids.TDVF_HEADER + header + body)

    def piece(self, from_end: int, data: bytes) -> Self:
        """Put ``data`` so that it starts ``from_end`` bytes before the end."""
        self._pieces.append((from_end, data))
        return self

    def volume_of(self, file: bytes) -> Self:
        """Make the image one volume with this file in it."""
        self._volume = file
        return self

    def build(self) -> bytes:
        """The image's bytes."""
        image = bytearray(b"\xff" * self.size)
        if self._volume is not None:
            head = volume_header(self.size) + self._volume
            image[: len(head)] = head
        pieces = [*self._pieces, self._table()] if self._entries else self._pieces
        for from_end, data in pieces:
            start = self.size - from_end
            image[start : start + len(data)] = data
        return bytes(image)

    def _table(self) -> tuple[int, bytes]:
        entries = b"".join(
            data + struct.pack("<H", len(data) + 18) + guid for guid, data in reversed(self._entries)
        )
        table = entries + struct.pack("<H", len(entries) + 18) + guids.TABLE_FOOTER
        return FOOTER_OFFSET + len(table) - guids.GUID_SIZE, table
