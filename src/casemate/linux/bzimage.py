"""A kernel's bzImage: its setup header, and the kernel proper inside of it (Linux Documentation/arch/x86/boot.rst)."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zstandard
from lz4.block import decompress

from casemate.errors import ImageError
from casemate.files import LARGEST_KERNEL, read_regular
from casemate.linux.elf import ElfImage, Segment

_MAGIC, _MAGIC_AT = b"HdrS", 0x202
_SETUP_SECTORS, _HEADER_START, _HEADER_LENGTH = 0x1F1, 0x1F1, 0x201
_VERSION, _PAYLOAD, _XLOADFLAGS = 0x206, 0x248, 0x236
_KERNEL_64 = 1 << 0
_SECTOR = 512
_MINIMUM_VERSION = 0x20C
_COMMAND_LINE_SIZE = 0x238
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20
_LARGEST_KERNEL = 512 << 20
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LinuxKernel:
    """The kernel proper; ``setup_header`` is what boot_params wants to have of the file, from 0x1f1 on."""

    segments: tuple[Segment, ...]
    entry: int
    """Where 64-bit code starts (startup_64)."""
    end: int
    """Behind the last byte that the kernel takes for itself, its zeroed memory too."""
    setup_header: bytes
    longest_command_line: int
    """In bytes, without the NUL."""

    @classmethod
    def load(cls, path: Path) -> LinuxKernel:
        """Read and unpack a bzImage. Raises ImageError if that is not possible."""
        return cls.from_bytes(read_regular(path, LARGEST_KERNEL, "give a bzImage"), path)

    @classmethod
    def from_bytes(cls, image: bytes, path: Path | str) -> LinuxKernel:
        """Unpack a bzImage; ``path`` names it in errors. Raises ImageError."""
        if image[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
            raise ImageError(path, "this is no Linux kernel (no HdrS)", "give a bzImage", _MAGIC_AT)
        if len(image) < _PAYLOAD + 8:
            raise ImageError(path, "the file ends inside of the setup header", "get it anew", len(image))
        (version,) = struct.unpack_from("<H", image, _VERSION)
        if version < _MINIMUM_VERSION or not image[_XLOADFLAGS] & _KERNEL_64:
            cause = f"boot protocol {version >> 8}.{version & 0xFF:02} has no 64-bit entry"
            raise ImageError(path, cause, "give an x86-64 kernel of Linux 3.8 or newer", _VERSION)
        elf = ElfImage.from_bytes(unpack_vmlinux(image, path), path)
        if elf.bits != 64 or min(segment.gpa for segment in elf.segments) < _MIB:
            raise ImageError(
                path, "the unpacked kernel is not of 64 bits, or goes below 1 MiB", "get it anew"
            )
        if not any(segment.gpa <= elf.entry < segment.gpa + len(segment.data) for segment in elf.segments):
            raise ImageError(
                path, f"the kernel's entry {elf.entry:#x} is in none of its segments", "get it anew"
            )
        header = image[_HEADER_START : _MAGIC_AT + image[_HEADER_LENGTH]]
        (longest,) = struct.unpack_from("<I", image, _COMMAND_LINE_SIZE)
        end = max(segment.end for segment in elf.segments)
        return cls(elf.segments, elf.entry, end, header, longest)


def unpack_vmlinux(image: bytes, path: Path | str) -> bytes:
    """The ELF file in a bzImage whose setup header is whole. Raises ImageError."""
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = ((image[_SETUP_SECTORS] or 4) + 1) * _SECTOR + offset
    payload = image[start : start + length]
    if len(payload) != length or length < 8:
        raise ImageError(path, "the file ends inside of the compressed kernel", "get it anew", len(image))
    return _unpack(payload, path, start)


def _unpack(payload: bytes, path: Path | str, offset: int) -> bytes:
    for magic, unpack in _FORMATS.items():
        if payload.startswith(magic):
            try:
                # The build appends the unpacked size.
                return unpack(payload[:-4])
            except Exception as error:
                cause = f"the compressed kernel cannot be unpacked: {error}"
                raise ImageError(path, cause, "get the kernel anew", offset) from None
    known = "gzip, bzip2, LZMA, XZ, LZ4 or Zstandard"
    cause = f"the kernel is compressed in a way that is not known ({payload[:4].hex()}), not with {known}"
    raise ImageError(path, cause, "build it with another CONFIG_KERNEL_*", offset)


def _gunzip(data: bytes) -> bytes:
    return zlib.decompressobj(31).decompress(data, _LARGEST_KERNEL)


def _bunzip(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, _LARGEST_KERNEL)


def _unlzma(data: bytes) -> bytes:
    return lzma.LZMADecompressor().decompress(data, _LARGEST_KERNEL)


def _unzstd(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        return reader.read(_LARGEST_KERNEL)


def _unlz4(data: bytes) -> bytes:
    blocks: list[bytes] = []
    at = len(_LZ4_LEGACY)
    while at + 4 <= len(data) and len(blocks) * _LZ4_BLOCK < _LARGEST_KERNEL:
        (size,) = struct.unpack_from("<I", data, at)
        blocks.append(decompress(data[at + 4 : at + 4 + size], uncompressed_size=_LZ4_BLOCK))
        at += 4 + size
    return b"".join(blocks)


_FORMATS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": _gunzip,
    b"BZh": _bunzip,
    b"\x5d\x00\x00": _unlzma,
    b"\xfd7zXZ": _unlzma,
    _LZ4_LEGACY: _unlz4,
    b"\x28\xb5\x2f\xfd": _unzstd,
}
