"""What is in a qcow2 image, as a guest sees it (QEMU docs/interop/qcow2.rst).

For firmware and variable stores, which are small: sizes are bounded before anything is unpacked.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from casemate.errors import ImageError

MAGIC = b"QFI\xfb"
LARGEST = 64 << 20
"""Bytes that a guest may see; firmware has less."""
MAX_DEPTH = 8
"""Backing files below each other."""

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED, _ZERO = 1 << 62, 1
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION_TYPE, _EXTENDED_L2 = 1, 2, 4, 8, 16
_FEATURES = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION_TYPE | _EXTENDED_L2
_SMALLEST_CLUSTER, _LARGEST_CLUSTER = 9, 21
_REMEDY = "convert it: qemu-img convert -O raw FILE FILE.raw"


class Qcow2FeatureError(ImageError):
    """A sound image that uses what is not read here."""


class Qcow2Header(NamedTuple):
    """The head of an image."""

    version: int
    size: int
    """Bytes that the guest sees."""
    cluster_bits: int
    l1_size: int
    l1_offset: int
    backing: str | None
    """What holds the clusters that are not here."""


def parse_qcow2_header(data: bytes, name: str) -> Qcow2Header:
    """The head of an image. Raises ImageError if it is broken, or needs what is not read here."""
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise ImageError(name, "no whole qcow2 header", "the file is truncated; copy it anew")
    fields = _HEADER.unpack_from(data)
    version, backing_at, backing_size, cluster_bits, size, encryption, l1_size, l1_offset = fields[1:9]
    if version not in (2, 3):
        raise ImageError(name, f"qcow2 of version {version}, not 2 or 3", _REMEDY, 4)
    if not _SMALLEST_CLUSTER <= cluster_bits <= _LARGEST_CLUSTER:
        raise ImageError(name, f"clusters of 2^{cluster_bits} bytes", "the file is damaged; copy it anew", 20)
    if encryption:
        raise Qcow2FeatureError(name, "an encrypted qcow2 image", _REMEDY, 32)
    if version == 3 and len(data) >= _HEADER.size + _V3.size:
        incompatible = _V3.unpack_from(data, _HEADER.size)[0]
        if incompatible & ~_FEATURES:
            raise ImageError(
                name, f"no QEMU knows the qcow2 features {incompatible:#x}", _REMEDY, _HEADER.size
            )
        if incompatible & ~(_DIRTY | _CORRUPT):
            cause = f"qcow2 features {incompatible:#x} are not read here"
            raise Qcow2FeatureError(name, cause, _REMEDY, _HEADER.size)
    backing = None
    if backing_at:
        if backing_size > 1023 or backing_at + backing_size > len(data):
            raise ImageError(name, "the backing file's name is out of place", "copy the image anew", 8)
        backing = data[backing_at : backing_at + backing_size].decode(errors="replace")
    return Qcow2Header(version, size, cluster_bits, l1_size, l1_offset, backing)


def read_qcow2(data: bytes, name: str, load: Callable[[str], bytes | None], depth: int = 0) -> bytes:
    """All bytes that the guest sees; ``load`` reads backing files.

    Raises ImageError for a broken image, one that is too large, and one whose backing file cannot be read.
    """
    header = parse_qcow2_header(data, name)
    if header.size > LARGEST:
        raise ImageError(
            name, f"{header.size} bytes for the guest are no firmware", "give the firmware itself"
        )
    below = _backing(header, name, load, depth)
    cluster = 1 << header.cluster_bits
    per_table = cluster // 8
    contents = bytearray()
    tables: dict[int, bytes] = {}
    while len(contents) < header.size:
        index = len(contents) // cluster
        first = _entry(data, header.l1_offset, index // per_table, header.l1_size, name) & _OFFSET
        entry = 0
        if first:
            if first not in tables:
                tables[first] = data[first : first + cluster]
            entry = _entry(tables[first], 0, index % per_table, per_table, name)
        contents += _cluster(data, entry, header, below[len(contents) : len(contents) + cluster], name)
    return bytes(contents[: header.size])


def _backing(header: Qcow2Header, name: str, load: Callable[[str], bytes | None], depth: int) -> bytes:
    if header.backing is None:
        return b""
    if depth >= MAX_DEPTH:
        raise ImageError(name, f"more than {MAX_DEPTH} backing files below each other", _REMEDY)
    data = load(header.backing)
    if data is None:
        raise ImageError(
            name, f"its backing file {header.backing!r} cannot be read", "put the two side by side"
        )
    return read_qcow2(data, header.backing, load, depth + 1) if data.startswith(MAGIC) else data


def _entry(table: bytes, start: int, index: int, count: int, name: str) -> int:
    at = start + 8 * index
    if index >= count or at + 8 > len(table):
        raise ImageError(name, "a table of clusters ends early", "the file is truncated; copy it anew", at)
    return int.from_bytes(table[at : at + 8], "big")


def _cluster(data: bytes, entry: int, header: Qcow2Header, below: bytes, name: str) -> bytes:
    size = 1 << header.cluster_bits
    if entry & _COMPRESSED:
        shift = 62 - (header.cluster_bits - 8)
        at = entry & (1 << shift) - 1
        sectors = (entry >> shift & (1 << 62 - shift) - 1) + 1
        packed = data[at : (at & ~511) + sectors * 512]
        try:
            unpacked = zlib.decompressobj(-15).decompress(packed, size)
        except zlib.error as error:
            raise ImageError(
                name, f"a compressed cluster is damaged: {error}", "copy the file anew", at
            ) from None
        return unpacked.ljust(size, b"\0")
    if header.version == 3 and entry & _ZERO:
        return bytes(size)
    at = entry & _OFFSET
    if not at:
        return below.ljust(size, b"\0")
    if at >= len(data):
        raise ImageError(
            name, "a cluster lies behind the end of the file", "the file is truncated; copy it anew", at
        )
    return data[at : at + size].ljust(size, b"\0")
