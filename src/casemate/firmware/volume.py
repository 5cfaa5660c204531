"""Firmware volumes and the files in them, compressed ones too (UEFI PI 1.8 vol. 3, chapters 2 and 3).

Images come from strangers, so everything is bounded: what LZMA streams unpack to, how deep volumes nest, how many
files there are. A walk that meets damage keeps what it found and says where it stopped.
"""

from __future__ import annotations

import lzma
from typing import TYPE_CHECKING, NamedTuple

from casemate.firmware import guids
from casemate.firmware.lzma_section import open_decoder
from casemate.firmware.volume_header import VolumeHeader, parse_volume_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LARGEST_UNPACKED = 48 << 20
"""Bytes that all LZMA streams of an image may unpack to; OVMF's take 16 MiB."""
LARGEST_UNPACKED_IN_ALL = 1 << 30
"""Bytes that those of all images of one command may unpack to."""
MAX_FILES = 4096
MAX_DEPTH = 6

_ALL = f"{LARGEST_UNPACKED_IN_ALL >> 30} GiB"
_FILE_HEADER = 24
_LARGE_FILE_HEADER = 32
_LARGE_FILE = 0x01
_SECTION_HEADER = 4
_LARGE_SECTION_HEADER = 8
_SIZE_IS_ELSEWHERE = 0xFFFFFF
_PE, _TE = 0x10, 0x12
_GUID_DEFINED, _USER_INTERFACE, _VOLUME_IMAGE = 0x02, 0x15, 0x17
_RAW, _PADDING = 0x01, 0xF0

FILE_TYPES = {
    _RAW: "raw",
    0x02: "freeform",
    0x03: "SEC core",
    0x04: "PEI core",
    0x05: "DXE core",
    0x06: "PEIM",
    0x07: "driver",
    0x08: "PEIM and driver",
    0x09: "application",
    0x0A: "SMM driver",
    0x0B: "volume image",
    0x0C: "SMM and DXE driver",
    0x0D: "SMM core",
    0x0E: "standalone MM driver",
    0x0F: "standalone MM core",
    _PADDING: "padding",
}


class FirmwareFile(NamedTuple):
    """One file of a volume and the volumes it contains."""

    guid: bytes
    type: int
    size: int
    """Bytes, header included."""
    name: str
    """What its user interface section calls it, or empty."""
    volumes: tuple[FirmwareVolume, ...]
    program: bytes = b""
    """Its PE or TE image."""

    @property
    def type_name(self) -> str:
        """The type in words."""
        return FILE_TYPES.get(self.type, f"type {self.type:#x}")

    @property
    def is_padding(self) -> bool:
        """Whether it only fills space."""
        return self.type == _PADDING


class FirmwareVolume(NamedTuple):
    """A volume: its header (offsets count from the start of what holds it), its files, and where the walk failed."""

    header: VolumeHeader
    files: tuple[FirmwareFile, ...]
    damage: str | None

    def all_files(self) -> Iterator[FirmwareFile]:
        """The files of this volume and of those inside, padding left out."""
        for file in self.files:
            if not file.is_padding:
                yield file
            for volume in file.volumes:
                yield from volume.all_files()

    def all_damage(self) -> Iterator[str]:
        """Every place where a walk stopped early."""
        if self.damage:
            yield self.damage
        for file in self.files:
            for volume in file.volumes:
                yield from volume.all_damage()


class _Damage(Exception):
    """The walk cannot go on; says why."""


class Allowance:
    """What the images of one command may still unpack to, in bytes."""

    def __init__(self, unpackable: int = LARGEST_UNPACKED_IN_ALL) -> None:
        self.unpackable = unpackable


class _Walk:
    """What one walk may still spend."""

    def __init__(self, unpackable: int = LARGEST_UNPACKED) -> None:
        self.limit = self.unpackable = min(unpackable, LARGEST_UNPACKED)
        self.files = MAX_FILES


def read_volume(data: bytes, header: VolumeHeader) -> FirmwareVolume:
    """The files of the volume that ``header`` found in ``data``."""
    return _read_volume(memoryview(data), header, _Walk(), 0)


def read_volumes(
    data: bytes, headers: Iterable[VolumeHeader], allowance: Allowance | None = None
) -> tuple[FirmwareVolume, ...]:
    """The files of several volumes of one image, which share one limit of unpacked bytes and of files.

    What they unpack to is taken from ``allowance``, which several images share.
    """
    allowance = allowance or Allowance()
    walk = _Walk(allowance.unpackable)
    volumes = tuple(_read_volume(memoryview(data), header, walk, 0) for header in headers)
    allowance.unpackable -= walk.limit - walk.unpackable
    return volumes


def _read_volume(data: memoryview, header: VolumeHeader, walk: _Walk, depth: int) -> FirmwareVolume:
    files: list[FirmwareFile] = []
    damage = None
    if header.file_system in (guids.FFS2, guids.FFS3):
        body = data[header.offset : header.end]
        try:
            if header.end > len(data):
                raise _Damage(f"the volume claims {header.length:#x} bytes, {len(body):#x} are there")
            for file in _files(body, header.header_length, walk, depth):
                files.append(file)  # noqa: PERF402  (what came before damage is kept)
        except _Damage as error:
            damage = str(error)
    return FirmwareVolume(header, tuple(files), damage)


def file_at(data: bytes | memoryview, header: VolumeHeader, offset: int) -> FirmwareFile | None:
    """The file at ``offset`` (from the volume's start), compressed contents left alone; None where there is none."""
    if header.file_system not in (guids.FFS2, guids.FFS3):
        return None
    walk = _Walk()
    walk.unpackable = 0
    volume = memoryview(data)[header.offset : header.end]
    try:
        for start, file, body in _extents(volume, header.header_length, walk):
            if start <= offset < start + len(file) + len(body):
                return _file_alone(bytes(file), body, walk)
    except _Damage:
        pass
    return None


def _file_alone(header: bytes, body: memoryview, walk: _Walk) -> FirmwareFile:
    try:
        return _file(header, body, walk, MAX_DEPTH)
    except _Damage:  # it is compressed
        return FirmwareFile(header[:16], header[18], len(header) + len(body), "", ())


def _files(volume: memoryview, offset: int, walk: _Walk, depth: int) -> Iterator[FirmwareFile]:
    for _, header, body in _extents(volume, offset, walk):
        yield _file(bytes(header), body, walk, depth)


def _extents(volume: memoryview, offset: int, walk: _Walk) -> Iterator[tuple[int, memoryview, memoryview]]:
    while (offset := offset + 7 & ~7) + _FILE_HEADER <= len(volume):
        header = bytes(volume[offset : offset + _LARGE_FILE_HEADER])
        if header[:_FILE_HEADER] == b"\xff" * _FILE_HEADER:
            return  # erased flash: the rest is free
        start, size = _FILE_HEADER, int.from_bytes(header[20:23], "little")
        if header[19] & _LARGE_FILE:
            start, size = _LARGE_FILE_HEADER, int.from_bytes(header[24:32], "little")
        if not start <= size <= len(volume) - offset:
            raise _Damage(f"file at {offset:#x} claims {size:#x} bytes, {len(volume) - offset:#x} are left")
        walk.files -= 1
        if walk.files < 0:
            raise _Damage(f"more than {MAX_FILES} files")
        yield offset, volume[offset : offset + start], volume[offset + start : offset + size]
        offset += size


def _file(header: bytes, body: memoryview, walk: _Walk, depth: int) -> FirmwareFile:
    name, program, volumes = "", b"", []
    kind = header[18]
    if kind in FILE_TYPES and kind not in (_RAW, _PADDING):
        for section, contents in _sections(body, walk, depth):
            if section == _USER_INTERFACE:
                name = _printable(bytes(contents))
            elif section in (_PE, _TE):
                program = bytes(contents)
            elif section == _VOLUME_IMAGE and (inner := parse_volume_header(contents)):
                volumes.append(_read_volume(contents, inner, walk, depth + 1))
    return FirmwareFile(header[:16], kind, len(header) + len(body), name, tuple(volumes), program)


def _printable(text: bytes) -> str:
    name = text.decode("utf-16-le", "replace").partition("\0")[0]
    return "".join(char if char.isprintable() else "?" for char in name)


def _sections(data: memoryview, walk: _Walk, depth: int) -> Iterator[tuple[int, memoryview]]:
    if depth > MAX_DEPTH:
        raise _Damage(f"volumes nest deeper than {MAX_DEPTH}")
    offset = 0
    while (offset := offset + 3 & ~3) + _SECTION_HEADER <= len(data):
        start, size = _SECTION_HEADER, int.from_bytes(data[offset : offset + 3], "little")
        kind = data[offset + 3]
        if size == _SIZE_IS_ELSEWHERE:
            start, size = _LARGE_SECTION_HEADER, int.from_bytes(data[offset + 4 : offset + 8], "little")
        if not start <= size <= len(data) - offset:
            raise _Damage(f"section at {offset:#x} claims {size:#x} bytes, {len(data) - offset:#x} are left")
        section = data[offset : offset + size]
        if kind == _GUID_DEFINED and section[start : start + guids.GUID_SIZE] == guids.LZMA_SECTION:
            contents = int.from_bytes(section[start + 16 : start + 18], "little")
            yield from _sections(memoryview(_unpack(section[contents:], walk)), walk, depth + 1)
        else:
            yield kind, section[start:]
        offset += size


def _unpack(stream: memoryview, walk: _Walk) -> bytes:
    decoder = open_decoder()
    try:
        unpacked = decoder.decompress(stream, walk.unpackable)
    except (lzma.LZMAError, MemoryError) as error:
        raise _Damage(f"LZMA stream: {error}") from None
    walk.unpackable -= len(unpacked)
    if not decoder.eof and walk.unpackable <= 0:
        whose = (
            ""
            if walk.limit == LARGEST_UNPACKED
            else f", with what this command unpacked before it: over {_ALL}"
        )
        raise _Damage(f"LZMA streams unpack to more than {walk.limit >> 20} MiB{whose}")
    return unpacked
