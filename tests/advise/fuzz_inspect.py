"""Damaged images for inspect; as a program it tries any number and prints the worst (docs/guide/inspect.md).

python tests/advise/fuzz_inspect.py 10000
"""

from __future__ import annotations

import json
import lzma
import random
import resource
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.firmware_images import find_images

from casemate.advise.inspect import inspect_image
from casemate.advise.inspection_json import report_to_dict
from casemate.advise.pairing import check_pairs
from casemate.firmware import guids
from casemate.firmware.guided_table import FOOTER_OFFSET
from casemate.firmware.image import FirmwareImage
from casemate.testing.images import ImageBuilder, variable_store

SIZES = (4096, 65536, 0x20000)
EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def synthetic(choose: random.Random) -> bytes:
    """A small image with every table, its numbers within and beyond the rules."""
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


def damaged(data: bytes, choose: random.Random) -> bytes:
    """``data`` with bytes changed, most of them where structure is, or cut or grown."""
    image = bytearray(data)
    for _ in range(choose.choice((1, 2, 8, 64))):
        image[_target(data, choose)] = choose.choice((*EDGES, choose.randrange(256)))
    if choose.random() < 0.2:
        del image[choose.randrange(1, len(image)) :]
    if choose.random() < 0.1:
        image += choose.randbytes(choose.choice((1, 4096)))
    return bytes(image)


def _target(data: bytes, choose: random.Random) -> int:
    stream = max(data.find(guids.LZMA_SECTION), 0)
    places = (
        (0, 0x120),
        (stream - 32, 128),
        (len(data) - FOOTER_OFFSET - 200, 250),
        (len(data) - 0xC40, 0xC40),
        (0, len(data)),
    )
    start, size = choose.choice(places)
    return min(max(start + choose.randrange(size), 0), len(data) - 1)


def images(count: int, seed: int, real: float) -> Iterator[bytes]:
    """``count`` images; the share ``real`` starts from installed firmware, if there is any."""
    choose = random.Random(seed)
    originals = find_images()
    for _ in range(count):
        is_real = bool(originals) and choose.random() < real
        yield damaged(choose.choice(originals).read_bytes() if is_real else synthetic(choose), choose)


def inspect_all(data: bytes) -> float:
    """Everything that ``casemate inspect`` does with two files; the CPU seconds that it took."""
    start = time.process_time()
    inspection = inspect_image(FirmwareImage.from_bytes(data, "fuzzed.fd"))
    pairs = check_pairs([inspection, inspect_image(FirmwareImage.from_bytes(variable_store(), "vars.fd"))])
    json.dumps(report_to_dict([(inspection, ())], pairs))
    return time.process_time() - start


def main() -> int:
    """Try as many images as the command line says, a third of them real."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    slowest = max(inspect_all(data) for data in images(count, seed=1, real=0.33))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{count} images, no exception, slowest {slowest:.2f} s of CPU, peak memory {memory} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
