"""Kernels that name a 32-bit entry in a note, as Linux and unikernels do (Xen docs/misc/pvh.pandoc)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from casemate.linux.direct_boot import ACPI, DirectBoot, memory_map
from casemate.linux.elf import ElfImage, Segment
from casemate.linux.elf_boot import Information, Module, lay_out, place_modules

_OWNER, _ENTRY_NOTE = b"Xen", 18
"""``XEN_ELFNOTE_PHYS32_ENTRY``."""
_MAGIC, _VERSION = 0x336EC578, 1
_HEAD = struct.Struct("<4I4QII")
_MODULE, _MAP_ENTRY = struct.Struct("<4Q"), struct.Struct("<QQII")


@dataclass(frozen=True, slots=True)
class PvhKernel:
    """What is loaded where, and where it starts, in 32-bit code without paging."""

    segments: tuple[Segment, ...]
    entry: int

    @classmethod
    def from_elf(cls, image: ElfImage) -> PvhKernel | None:
        """None if the file has no such note."""
        for note in image.notes:
            if (note.owner, note.kind) == (_OWNER, _ENTRY_NOTE) and len(note.data) in (4, 8):
                return cls(image.segments, int.from_bytes(note.data, "little") & 0xFFFFFFFF)
        return None


def prepare_pvh(
    kernel: PvhKernel,
    modules: Sequence[Module],
    command_line: str,
    ram: Sequence[tuple[int, int]],
    *,
    vcpus: int = 1,
) -> DirectBoot:
    """Lay it out in ``ram``, ranges of address and size. Raises SpecError if it does not fit."""
    places = place_modules(kernel.segments, modules, ram)
    information = Information(_HEAD.size)
    words = information.add_text(command_line)
    rows = [
        _MODULE.pack(gpa, len(module.data), information.add_text(module.words), 0)
        for gpa, module in zip(places, modules, strict=True)
    ]
    listed = information.add(b"".join(rows)) if rows else 0
    memory = memory_map(ram)
    map_at = information.add(b"".join(_MAP_ENTRY.pack(*entry, 0) for entry in memory))
    head = _HEAD.pack(_MAGIC, _VERSION, 0, len(rows), listed, words, ACPI, map_at, len(memory), 0)
    piece = information.piece(head)
    return lay_out(kernel.segments, list(zip(places, modules, strict=True)), piece, vcpus, kernel.entry, 0)
