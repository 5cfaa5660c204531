"""Damaged firmware images for ``casemate inspect``, and damaged qcow2 files (docs/guide/inspect.md)."""

from __future__ import annotations

import functools
import json
import lzma
import random
import struct
import zlib
from collections.abc import Sequence
from time import process_time

from hypothesis import given
from hypothesis import strategies as st
from support.firmware_images import find_images

from casemate.advise.inspect import inspect_image
from casemate.advise.inspection_json import report_to_dict
from casemate.advise.pairing import check_pairs
from casemate.errors import ImageError
from casemate.firmware import guids
from casemate.firmware.guided_table import FOOTER_OFFSET
from casemate.firmware.image import FirmwareImage
from casemate.firmware.qcow2 import read_qcow2
from casemate.testing.images import ImageBuilder, variable_store
from fuzz.edits import EDITS, damaged
from fuzz.target import Target, quick, refusals

SIZES = (4096, 65536, 0x20000)


@functools.cache
def synthetic(seed: int) -> bytes:
    """A small image with every table, its numbers within and beyond the rules."""
    choose = random.Random(seed)
    number = choose.choice((0, 1, 0x1000, 0x80C000, 0xFFFFFFFF, choose.getrandbits(32)))
    builder = ImageBuilder(choose.choice(SIZES), volume=choose.random() < 0.5)
    builder.reset_block(number).hashes(number, choose.getrandbits(16)).secret(choose.getrandbits(32))
    builder.sev_metadata(*[(choose.getrandbits(32), 0x1000, choose.randrange(6))] * choose.randrange(4))
    builder.tdx_metadata(
        [(choose.getrandbits(16), choose.getrandbits(16), number, 0x1000, choose.randrange(6), 1)]
        * choose.randrange(4)
    )
    stream = lzma.compress(bytes(choose.getrandbits(12)) + guids.FFS2, format=lzma.FORMAT_ALONE)
    builder.piece(builder.size - 0x100, guids.LZMA_SECTION + struct.pack("<HH", 24, 1) + stream)
    data = builder.build()
    return variable_store(0x8000) + data if choose.random() < 0.3 else data


@functools.cache
def real() -> list[bytes]:
    """Installed firmware, if there is any."""
    return [path.read_bytes() for path in find_images()]


@functools.cache
def qcow2(version: int) -> bytes:
    """Four clusters of 512 bytes: one there, one compressed, one of zeros, one of the backing file."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    packed = packer.compress(b"firmware" * 64) + packer.flush()
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, 0x180, 5, 9, 4 * 512, 0, 1, 0x200, 0, 0, 0, 0)
    head += struct.pack(">QQQII", 0, 0, 0, 4, 104) if version == 3 else b""
    first = (0x200 + 0x200 | 1 << 63).to_bytes(8, "big")
    second = struct.pack(">4Q", 0x600 | 1 << 63, 0x800 | 1 << 62, 1 if version == 3 else 0, 0)
    pieces = {0: head, 0x180: b"below", 0x200: first, 0x400: second, 0x600: b"ab" * 256, 0x800: packed}
    data = bytearray(0xA00)
    for at, piece in pieces.items():
        data[at : at + len(piece)] = piece
    return bytes(data)


def places(data: bytes) -> list[tuple[int, int]]:
    """Where the structure of an image is."""
    stream = max(data.find(guids.LZMA_SECTION), 0)
    tables = [(-FOOTER_OFFSET - 200, 250), (-0xC40, 0xC40)]
    return [(0, 0x120), (max(stream - 32, 0), 128), *tables]


def inspect_all(data: bytes) -> None:
    """Everything that ``casemate inspect`` does with two files, within a second of CPU."""
    start = process_time()
    try:
        inspection = inspect_image(FirmwareImage.from_bytes(data, "fuzzed.fd"))
    except ImageError:
        assert not data
        return
    pairs = check_pairs([inspection, inspect_image(FirmwareImage.from_bytes(variable_store(), "vars.fd"))])
    json.dumps(report_to_dict([(inspection, ())], pairs))
    assert process_time() - start < 1


@quick(150)
@given(st.integers(0, 599), EDITS)
def check(which: int, edits: Sequence[int]) -> None:
    """Damage is a finding, or for qcow2 files a refusal."""
    if which == 0 and real():
        original = real()[edits[0] % len(real())]
        inspect_all(damaged(original, edits, places=places(original)))
    elif which % 4 == 1:
        data = damaged(
            qcow2(2 + which // 4 % 2), edits, places=[(0, 112), (0x200, 8), (0x400, 32), (0x800, 32)]
        )
        with refusals():
            read_qcow2(data, "fuzzed.qcow2", lambda name: b"\x55" * 700 if name == "below" else None)
    else:
        original = synthetic(which)
        inspect_all(damaged(original, edits, (guids.LZMA_SECTION, guids.FFS2), places(original)))


TARGET = Target("images", "firmware images for inspect, and qcow2 files", check)
