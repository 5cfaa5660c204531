"""Multiboot and PVH kernels: what is read of them, and what is laid out (Multiboot 0.6.96; Xen pvh.pandoc)."""

from __future__ import annotations

import random
import struct
from contextlib import suppress

import pytest
from support.elf_images import LOAD_AT, MULTIBOOT, elf, multiboot_header, pvh_note

from casemate.errors import ImageError, SpecError
from casemate.linux.direct_boot import ACPI, DirectBoot
from casemate.linux.elf import ElfImage
from casemate.linux.elf_boot import INFORMATION, Module
from casemate.linux.multiboot import MultibootKernel, prepare_multiboot
from casemate.linux.pvh import PvhKernel, prepare_pvh

MIB = 1 << 20
RAM = [(0, 0xA0000), (0xC0000, 64 * MIB - 0xC0000), (1 << 32, 16 * MIB)]
MODULES = [Module(b"first" * 1000, "first words"), Module(b"second", "second")]


def memory(boot: DirectBoot) -> bytearray:
    whole = bytearray(64 * MIB)
    taken: list[tuple[int, int]] = []
    for piece in boot.pieces:
        end = piece.gpa + len(piece.data)
        assert piece.gpa % 4096 == len(piece.data) % 4096 == 0
        assert all(end <= start or piece.gpa >= other for start, other in taken), piece.what
        taken.append((piece.gpa, end))
        whole[piece.gpa : end] = piece.data
    return whole


def text(whole: bytearray, at: int) -> str:
    return bytes(whole[at : whole.index(0, at)]).decode()


def test_multiboot_kernel_is_told_of_memory_modules_and_its_command_line() -> None:
    kernel = MultibootKernel.from_bytes(elf(multiboot_header() + b"code", LOAD_AT + 12), "k")
    assert kernel is not None
    assert kernel.entry == LOAD_AT + 12
    whole = memory(prepare_multiboot(kernel, MODULES, "k one two", RAM))
    assert whole[LOAD_AT + 12 : LOAD_AT + 16] == b"code"
    flags, low, high, _, words, count, listed = struct.unpack_from("<7I", whole, INFORMATION)
    map_size, map_at, _, _, _, loader = struct.unpack_from("<6I", whole, INFORMATION + 44)
    assert flags == 0b1001001101
    assert (low, high) == (ACPI >> 10, 63 * 1024)
    assert (text(whole, words), text(whole, loader)) == ("k one two", "casemate")
    assert count == 2
    for module, at in zip(MODULES, (listed, listed + 16), strict=True):
        start, end, module_words, _ = struct.unpack_from("<4I", whole, at)
        assert start % 4096 == 0
        assert (bytes(whole[start:end]), text(whole, module_words)) == (module.data, module.words)
    rows = list(struct.iter_unpack("<IQQI", whole[map_at : map_at + map_size]))
    assert {row[0] for row in rows} == {20}
    assert (1 << 32, 16 * MIB, 1) in [row[1:] for row in rows]


def test_multiboot_image_without_elf_is_loaded_by_its_addresses() -> None:
    header = multiboot_header(1 << 16, (LOAD_AT + 64, LOAD_AT, LOAD_AT + 128, LOAD_AT + 0x2000, LOAD_AT + 96))
    image = bytes(32) + bytes(64) + header + bytes(32) + b"rest"
    kernel = MultibootKernel.from_bytes(image, "k")
    assert kernel is not None
    (segment,) = kernel.segments
    assert (segment.gpa, segment.end, kernel.entry) == (LOAD_AT, LOAD_AT + 0x2000, LOAD_AT + 96)
    assert segment.data == image[32:160]


@pytest.mark.parametrize(
    ("image", "cause"),
    [
        (elf(multiboot_header(1 << 5)), "requires unknown features 0x20"),
        (multiboot_header(1 << 16), "ends inside of the multiboot header"),
        (multiboot_header(1 << 16, (0, LOAD_AT, 0, 0, 0)), "addresses are not in the file"),
        (multiboot_header(), "no whole ELF file"),
        (elf(multiboot_header(), machine=40), "is for machine 40"),
    ],
)
def test_multiboot_header_that_cannot_be_served_is_refused(image: bytes, cause: str) -> None:
    with pytest.raises(ImageError, match=cause):
        MultibootKernel.from_bytes(image, "k")


def test_header_with_a_wrong_checksum_or_too_far_behind_is_none() -> None:
    wrong = struct.pack("<3I", MULTIBOOT, 0, 1)
    assert MultibootKernel.from_bytes(elf(wrong), "k") is None
    assert MultibootKernel.from_bytes(bytes(8192) + multiboot_header(), "k") is None
    assert MultibootKernel.from_bytes(bytes(2) + multiboot_header(), "k") is None, "not aligned"


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("size", [4, 8])
def test_pvh_kernel_is_told_of_memory_modules_acpi_and_its_command_line(bits: int, size: int) -> None:
    image = ElfImage.from_bytes(elf(b"code", bits=bits, note=pvh_note(LOAD_AT + 2, size), zeros=0x3000), "k")
    kernel = PvhKernel.from_elf(image)
    assert kernel is not None
    assert kernel.entry == LOAD_AT + 2
    whole = memory(prepare_pvh(kernel, MODULES[:1], "one two", RAM))
    magic, version, flags, count, listed, words, rsdp, map_at, entries = struct.unpack_from(
        "<4I4QI", whole, INFORMATION
    )
    assert (magic, version, flags, count, rsdp) == (0x336EC578, 1, 0, 1, ACPI)
    assert whole[rsdp : rsdp + 8] == b"RSD PTR "
    assert text(whole, words) == "one two"
    at, length, module_words, _ = struct.unpack_from("<4Q", whole, listed)
    assert (bytes(whole[at : at + length]), text(whole, module_words)) == (MODULES[0].data, "first words")
    rows = [struct.unpack_from("<QQII", whole, map_at + 24 * number) for number in range(entries)]
    assert rows[-1] == (1 << 32, 16 * MIB, 1, 0)


def test_elf_without_the_note_is_no_pvh_kernel() -> None:
    assert PvhKernel.from_elf(ElfImage.from_bytes(elf(b"code", note=pvh_note()[:20]), "k")) is None


def test_entry_by_its_linear_address_is_found() -> None:
    image = ElfImage.from_bytes(elf(b"code", 0xFFFFFFFF80000002, bits=64, linear=0xFFFFFFFF80000000), "k")
    assert image.entry == LOAD_AT + 2


@pytest.mark.parametrize(
    ("at", "zeros", "module", "cause"),
    [
        (64 * MIB, 0, 0, "wants memory at 0x4000000"),
        (LOAD_AT, 64 * MIB, 0, "wants memory at 0x400000 to"),
        (0xA0000, 0, 0, "wants memory at 0xa0000"),
        (INFORMATION, 0, 0, "where it is told of its modules"),
        (LOAD_AT, 40 * MIB, 30 * MIB, "kernel and modules need"),
    ],
)
def test_kernel_that_does_not_fit_is_refused(at: int, zeros: int, module: int, cause: str) -> None:
    kernel = PvhKernel.from_elf(
        ElfImage.from_bytes(elf(b"code", at, at=at, zeros=zeros, note=pvh_note()), "k")
    )
    assert kernel is not None
    with pytest.raises(SpecError, match=cause):
        prepare_pvh(kernel, [Module(bytes(module))] if module else [], "", RAM)


def test_words_that_do_not_fit_are_refused() -> None:
    kernel = PvhKernel.from_elf(ElfImage.from_bytes(elf(b"code", note=pvh_note()), "k"))
    assert kernel is not None
    with pytest.raises(SpecError, match="bytes of words"):
        prepare_pvh(kernel, [], "x" * 50000, RAM)


def test_cut_and_changed_files_are_refused_or_read() -> None:
    whole = elf(multiboot_header() + b"code" * 8, bits=64, note=pvh_note())
    random.seed(5)
    changed = [whole[:size] for size in range(len(whole))]
    for _ in range(2000):
        spoilt = bytearray(whole)
        for _ in range(3):
            spoilt[random.randrange(len(spoilt))] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
        changed.append(bytes(spoilt))
    for image in changed:
        with suppress(ImageError, SpecError):
            multiboot = MultibootKernel.from_bytes(image, "k")
            pvh = PvhKernel.from_elf(ElfImage.from_bytes(image, "k"))
            if multiboot is not None:
                prepare_multiboot(multiboot, [], "", RAM)
            if pvh is not None:
                prepare_pvh(pvh, [], "", RAM)
