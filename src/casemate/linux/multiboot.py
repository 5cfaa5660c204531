"""Multiboot kernels, as test suites and hobby systems are (Multiboot Specification, version 0.6.96)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import ImageError
from casemate.linux.direct_boot import DirectBoot, memory_map
from casemate.linux.elf import ElfImage, Segment
from casemate.linux.elf_boot import Information, Module, lay_out, place_modules

_MAGIC, _STARTED = 0x1BADB002, 0x2BADB002
_SEARCHED = 8192
_HAS_ADDRESSES, _MANDATORY, _KNOWN = 1 << 16, 0xFFFF, 0b111
_MEMORY, _COMMAND_LINE, _MODULES, _MAP, _LOADER_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
_HEAD = 88
_MODULE, _MAP_ENTRY = struct.Struct("<4I"), struct.Struct("<IQQI")
_LOADER = "casemate"


@dataclass(frozen=True, slots=True)
class MultibootKernel:
    """What is loaded where, and where it starts, in 32-bit code."""

    segments: tuple[Segment, ...]
    entry: int

    @classmethod
    def from_bytes(cls, image: bytes, path: Path | str) -> MultibootKernel | None:
        """None if there is no multiboot header. Raises ImageError for one that asks for what is not there."""
        at = _find_header(image)
        if at is None:
            return None
        (flags,) = struct.unpack_from("<I", image, at + 4)
        if unknown := flags & _MANDATORY & ~_KNOWN:
            raise ImageError(path, f"the multiboot header requires unknown features {unknown:#x}", "", at + 4)
        if flags & _HAS_ADDRESSES:
            return cls._by_addresses(image, at, path)
        elf = ElfImage.from_bytes(image, path)
        return cls(elf.segments, elf.entry)

    @classmethod
    def _by_addresses(cls, image: bytes, at: int, path: Path | str) -> MultibootKernel:
        if at + 32 > len(image):
            raise ImageError(path, "the file ends inside of the multiboot header", "get it anew", at)
        header, load, load_end, bss_end, entry = struct.unpack_from("<5I", image, at + 12)
        start = at - (header - load)
        end = start + load_end - load if load_end else len(image)
        if not 0 <= start < end <= len(image):
            raise ImageError(
                path, "the multiboot header's addresses are not in the file", "link it anew", at + 12
            )
        data = image[start:end]
        return cls((Segment(load, data, max(bss_end - load, len(data))),), entry)


def _find_header(image: bytes) -> int | None:
    magic = struct.pack("<I", _MAGIC)
    for at in range(0, min(_SEARCHED, len(image)) - 11, 4):
        if image[at : at + 4] == magic and sum(struct.unpack_from("<3I", image, at)) & 0xFFFFFFFF == 0:
            return at
    return None


def prepare_multiboot(
    kernel: MultibootKernel,
    modules: Sequence[Module],
    command_line: str,
    ram: Sequence[tuple[int, int]],
    *,
    vcpus: int = 1,
) -> DirectBoot:
    """Lay it out in ``ram``, ranges of address and size; the command line is to begin with the kernel's name.

    Raises SpecError if it does not fit.
    """
    places = place_modules(kernel.segments, modules, ram)
    information = Information(_HEAD)
    words = information.add_text(command_line)
    loader = information.add_text(_LOADER)
    listed = information.add(
        b"".join(
            _MODULE.pack(gpa, gpa + len(module.data), information.add_text(module.words), 0)
            for gpa, module in zip(places, modules, strict=True)
        )
    )
    memory = memory_map(ram)
    rows = b"".join(_MAP_ENTRY.pack(_MAP_ENTRY.size - 4, *entry) for entry in memory)
    map_at = information.add(rows)
    low, high = memory[0][1] >> 10, next(size for start, size, _ in memory if start == 1 << 20) >> 10
    flags = _MEMORY | _COMMAND_LINE | _MODULES | _MAP | _LOADER_NAME
    head = struct.pack("<7I", flags, low, high, 0, words, len(modules), listed)
    head += bytes(16) + struct.pack("<II12xI", len(rows), map_at, loader)
    piece = information.piece(head)
    return lay_out(
        kernel.segments, list(zip(places, modules, strict=True)), piece, vcpus, kernel.entry, _STARTED
    )
