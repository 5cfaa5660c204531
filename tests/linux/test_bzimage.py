"""Kernels out of bzImage files: every compression, and files that are none (Linux boot.rst)."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.firmware_images import require_kernel

from casemate.abi.sev.snp import SnpPageType
from casemate.errors import ImageError, SpecError
from casemate.linux.bzimage import LinuxKernel
from casemate.linux.direct_boot import prepare_linux

RAM = [(0, 0xA0000), (0xC0000, (256 << 20) - 0xC0000)]


def vmlinux(*segments: tuple[int, bytes, int], entry: int = 0x1000000) -> bytes:
    """An ELF file of (address, data, bytes in memory)."""
    head = struct.pack(
        "<4sBBB9xHHIQQQIHHH6x", b"\x7fELF", 2, 1, 1, 2, 62, 1, entry, 64, 0, 0, 64, 56, len(segments)
    )
    offset, headers, body = 64 + 56 * len(segments), b"", b""
    for gpa, data, in_memory in segments:
        headers += struct.pack("<IIQQQQQQ", 1, 7, offset + len(body), gpa, gpa, len(data), in_memory, 0x1000)
        body += data
    return head + headers + body


def lz4_legacy(data: bytes) -> bytes:
    blocks = (
        lz4.block.compress(data[at : at + (8 << 20)], store_size=False) for at in range(0, len(data), 8 << 20)
    )
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


def bzimage(kernel: bytes, compress: Callable[[bytes], bytes] = gzip.compress, version: int = 0x20F) -> bytes:
    payload = compress(kernel) + struct.pack("<I", len(kernel))
    setup = bytearray(2 * 512)
    setup[0x1F1], setup[0x201] = 1, 0x6A
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<HI", setup, 0x236, 1, 2047)
    struct.pack_into("<II", setup, 0x248, 0x20, len(payload))
    return bytes(setup) + bytes(0x20) + payload


KERNEL = vmlinux((0x1000000, b"text" * 1000, 4000), (0x1002000, b"data", 0x5000))


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        bz2.compress,
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        lambda data: lzma.compress(data, lzma.FORMAT_XZ),
        lz4_legacy,
        zstandard.ZstdCompressor().compress,
    ],
    ids=["gzip", "bzip2", "lzma", "xz", "lz4", "zstd"],
)
def test_kernel_is_unpacked_from_every_compression(compress: Callable[[bytes], bytes]) -> None:
    kernel = LinuxKernel.from_bytes(bzimage(KERNEL, compress), "test")
    found = [(segment.gpa, segment.data) for segment in kernel.segments]
    assert found == [(0x1000000, b"text" * 1000), (0x1002000, b"data")]
    assert (kernel.entry, kernel.end, kernel.longest_command_line) == (0x1000000, 0x1007000, 2047)


@pytest.mark.parametrize(
    ("image", "cause"),
    [
        (bytes(4096), "no HdrS"),
        (bzimage(KERNEL, version=0x20A), "boot protocol 2.10 has no 64-bit entry"),
        (bzimage(KERNEL)[:-100], "ends inside"),
        (bzimage(KERNEL)[:0x207], "ends inside of the setup header"),
        (bzimage(vmlinux(*[(0x1000000, b"", 0)] * 600)), "has nothing to load"),
        (bzimage(KERNEL, lambda data: b"LZOP" + data), "not known"),
        (bzimage(KERNEL, lambda data: gzip.compress(data)[:-9] + bytes(30)), "cannot be unpacked"),
        (bzimage(b"no elf" * 100), "no whole ELF file"),
        (bzimage(vmlinux((0x1000, b"low", 3))), "goes below 1 MiB"),
        (bzimage(vmlinux()), "has nothing to load"),
        (bzimage(vmlinux((0x1000000, b"code", 4), entry=0x2000000)), "entry 0x2000000"),
    ],
)
def test_file_that_is_no_kernel_is_refused_with_the_reason(image: bytes, cause: str) -> None:
    with pytest.raises(ImageError, match=cause):
        LinuxKernel.from_bytes(image, "test")


@given(st.integers(0, len(bzimage(KERNEL)) - 1), st.integers(1, 255))
def test_any_changed_byte_gives_a_kernel_or_a_refusal(at: int, change: int) -> None:
    image = bytearray(bzimage(KERNEL))
    image[at] ^= change
    with suppress(ImageError, SpecError):
        prepare_linux(LinuxKernel.from_bytes(bytes(image), "test"), b"", "", RAM)


def test_pieces_lie_in_ram_whole_pages_apart_from_each_other() -> None:
    kernel = LinuxKernel.from_bytes(bzimage(KERNEL), "test")
    boot = prepare_linux(kernel, b"initrd" * 1000, "console=ttyS0", RAM)
    spans = sorted((piece.gpa, piece.gpa + len(piece.data)) for piece in boot.pieces)
    assert all(start % 4096 == end % 4096 == 0 for start, end in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert all(any(low <= start and end <= low + size for low, size in RAM) for start, end in spans)
    pieces = {piece.what: piece for piece in boot.pieces}
    params = pieces["boot parameters"].data
    initrd_at, initrd_size, command_line = struct.unpack_from("<IIxxxxxxxxI", params, 0x218)
    assert (initrd_at, initrd_size) == (pieces["initrd"].gpa, 6000)
    assert command_line == pieces["command line"].gpa
    assert bytes(pieces["command line"].data).startswith(b"console=ttyS0\0")
    assert struct.unpack_from("<Q", params, 0x70)[0] == pieces["ACPI tables"].gpa


def test_memory_map_covers_what_is_there_and_nothing_twice() -> None:
    kernel = LinuxKernel.from_bytes(bzimage(KERNEL), "test")
    ram = [*RAM, (1 << 32, 1 << 30)]
    params = next(piece.data for piece in prepare_linux(kernel, b"", "", ram).pieces if piece.gpa == 0x10000)
    entries = [struct.unpack_from("<QQI", params, 0x2D0 + 20 * index) for index in range(params[0x1E8])]
    usable = [(start, start + size) for start, size, kind in entries if kind == 1]
    assert usable == [(0, 0x9C000), (0x100000, 256 << 20), (1 << 32, (1 << 32) + (1 << 30))]
    assert all(a[0] + a[1] <= b[0] for a, b in pairwise(entries))


def test_snp_guest_takes_the_memory_that_was_not_launched_and_no_other() -> None:
    kernel = LinuxKernel.from_bytes(bzimage(KERNEL), "test")
    ram = [*RAM, (1 << 32, 1 << 30)]
    boot = prepare_linux(kernel, b"initrd" * 1000, "", ram, 39, is_snp=True)
    taken = []
    for at in range(0xF000, 0xFE00, 16):
        start, end = struct.unpack_from("<QQ", boot.image, at)
        if not end:
            break
        taken.append((start, end))
    pieces = [(piece.gpa, piece.gpa + len(piece.data)) for piece in boot.pieces]
    spans = sorted([*taken, *pieces])
    joints = {end for _, end in spans} ^ {start for start, _ in spans}
    assert joints == {start for start, _ in ram} ^ {start + size for start, size in ram}
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    tables = boot.pieces[0].data
    assert struct.unpack_from("<Q", tables, 0x1000 + 8 * 4)[0] & 3, "what it takes is mapped"


def test_snp_guest_is_led_to_its_secrets_and_cpuid_table() -> None:
    kernel = LinuxKernel.from_bytes(bzimage(KERNEL), "test")
    boot = prepare_linux(kernel, b"", "", RAM, 39, is_snp=True)
    pieces = {piece.what: piece for piece in boot.pieces}
    params = pieces["boot parameters"].data
    assert struct.unpack_from("<I", params, 0x13C)[0] == pieces["CC blob"].gpa
    magic, _, _, secrets, secrets_size, _, cpuid, cpuid_size = struct.unpack_from(
        "<IHHQIIQI", pieces["CC blob"].data
    )
    assert struct.pack("<I", magic) == b"AMDE"
    assert (secrets, secrets_size) == (pieces["secrets"].gpa, 4096)
    assert (cpuid, cpuid_size) == (pieces["CPUID table"].gpa, 4096)
    assert pieces["secrets"].page_type is SnpPageType.SECRETS
    assert pieces["CPUID table"].page_type is SnpPageType.CPUID
    entries = [struct.unpack_from("<QQI", params, 0x2D0 + 20 * index) for index in range(params[0x1E8])]
    (kind,) = {kind for start, size, kind in entries if start <= secrets < start + size}
    assert kind == 2, "Linux maps no RAM as a device's memory"


def test_snp_guest_with_more_memory_than_its_page_tables_map_is_refused() -> None:
    kernel = LinuxKernel.from_bytes(bzimage(KERNEL), "test")
    with pytest.raises(SpecError, match="13 GiB"):
        prepare_linux(kernel, b"", "", [*RAM, (1 << 32, 10 << 30)], 39, is_snp=True)


@pytest.mark.parametrize("c_bit", [None, 39, 47, 51])
def test_page_tables_map_everything_as_the_guest_needs_it(c_bit: int | None) -> None:
    kernel = LinuxKernel.from_bytes(bzimage(KERNEL), "test")
    tables = prepare_linux(kernel, b"", "", RAM, c_bit).pieces[0].data
    flag = 0 if c_bit is None else 1 << c_bit
    for gpa in (0, 0x1000000, 0xFFFFF000):
        directory = 0x2000 + 0x1000 * (gpa >> 30)
        (entry,) = struct.unpack_from("<Q", tables, directory + 8 * (gpa >> 21 & 511))
        assert entry == gpa & ~0x1FFFFF | 0x83 | flag


@pytest.mark.parametrize(
    ("initrd", "append", "cause"),
    [(bytes(255 << 20), "", "need .* MiB of memory"), (b"", "x" * 2048, "this kernel takes 2047")],
)
def test_what_does_not_fit_is_refused(initrd: bytes, append: str, cause: str) -> None:
    kernel = LinuxKernel.from_bytes(bzimage(KERNEL), "test")
    with pytest.raises(SpecError, match=cause):
        prepare_linux(kernel, initrd, append, RAM)


@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_stock_kernel_is_unpacked(release: str) -> None:
    path: Path = require_kernel(release)
    kernel = LinuxKernel.load(path)
    first = kernel.segments[0]
    assert first.gpa == 0x1000000
    assert first.gpa <= kernel.entry < first.gpa + len(first.data)
    assert b"Linux version" in b"".join(segment.data for segment in kernel.segments)
