"""Damaged kernels to boot without firmware: bzImage, ELF with a PVH entry, multiboot (Linux boot.rst)."""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.elf_images import elf, multiboot_header, pvh_note
from test_bzimage import KERNEL, bzimage, lz4_legacy

from casemate.digest.kernel_header import patched_kernel
from casemate.linux.bzimage import LinuxKernel
from casemate.machine.direct_kernel import lay_out_linux
from casemate.machine.spec import MachineSpec
from fuzz.edits import EDITS, damaged
from fuzz.target import Target, quick, refusals

WORDS = (
    b"HdrS",
    b"\x7fELF",
    b"\x1f\x8b\x08",
    b"BZh9",
    b"\x28\xb5\x2f\xfd",
    b"\x02\x21\x4c\x18",
    b"\x5d\0\0\0",
)
PLACES = ((0x1F1, 0x90), (0, 0x80), (0x200, 0x80), (0x420, 64), (0x40, 0x70), (-64, 64))
MODULES = "first one, second"


@functools.cache
def sound() -> tuple[bytes, ...]:
    """A kernel of every kind and compression."""
    packers = (
        gzip.compress,
        bz2.compress,
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        lzma.compress,
    )
    packed = [bzimage(KERNEL, each) for each in packers]
    packed += [bzimage(KERNEL, zstandard.ZstdCompressor().compress), bzimage(KERNEL, lz4_legacy)]
    by_address = multiboot_header(1 << 16, (0x400000, 0x400000, 0x401000, 0x402000, 0x400020))
    return (
        *packed,
        elf(b"\xf4" * 64, note=pvh_note()),
        elf(b"\xf4" * 64, bits=64, note=pvh_note(size=8), zeros=4096),
        elf(multiboot_header() + b"\xf4" * 64),
        by_address + b"\xf4" * 4096,
    )


@functools.cache
def _paths(process: int) -> tuple[Path, Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"kernels-{process}-"))
    (folder / "initrd").write_bytes(b"070701" * 100)
    return folder / "kernel", folder / "initrd"


@quick(200)
@given(st.integers(0, 9), st.booleans(), st.sampled_from((None, 47, 51)), EDITS)
def check(which: int, in_pieces: bool, c_bit: int | None, edits: Sequence[int]) -> None:
    """It is laid out in memory, or refused."""
    data = sound()[which]
    kernel, initrd = _paths(os.getpid())
    changed = damaged(data, edits, WORDS, PLACES)
    kernel.write_bytes(changed)
    with refusals():
        spec = MachineSpec(kernel=kernel, initrd=initrd if in_pieces else None, append="console=ttyS0")
        boot = lay_out_linux(spec, c_bit)
        assert all(piece.gpa >= 0 for piece in boot.pieces)
    with refusals():
        LinuxKernel.from_bytes(changed, "kernel")
    patched = patched_kernel(changed, struct.unpack_from("<I", data)[0], 1 << 31)
    assert patched is None or len(patched) == len(changed)


TARGET = Target("kernels", "bzImage, ELF and multiboot kernels", check)
