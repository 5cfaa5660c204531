"""What multiboot and PVH kernels find in memory alike: themselves, modules, a memory map and ACPI (QEMU hw/i386)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from casemate.address import FOUR_GIB, PAGE_SIZE
from casemate.errors import SpecError
from casemate.linux.acpi import PM_BASE, RSDP_SIZE, acpi_tables
from casemate.linux.direct_boot import ACPI, DirectBoot, Piece, whole_pages
from casemate.linux.elf import Segment
from casemate.linux.entry import flat_entry_image

INFORMATION = 0x90000
"""Where what the kernel is told begins; 48 KiB up to the ACPI tables."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Module:
    """A file for the kernel, and the words that came with it."""

    data: bytes
    words: str = ""


class Information:
    """A structure in memory that grows: what is added to it has an address at once."""

    def __init__(self, size: int) -> None:
        """``size`` bytes of it are the caller's."""
        self._data = bytearray(size)

    def add(self, data: bytes) -> int:
        """The address of ``data``, by 8 bytes."""
        self._data += bytes(-len(self._data) % 8)
        gpa = INFORMATION + len(self._data)
        self._data += data
        return gpa

    def add_text(self, text: str) -> int:
        """The address of ``text``, with its NUL."""
        return self.add(text.encode(errors="surrogateescape") + b"\0")

    def piece(self, head: bytes) -> Piece:
        """All of it, which begins with ``head``. Raises SpecError if there is no room for it."""
        self._data[: len(head)] = head
        if len(self._data) > ACPI - INFORMATION:
            raise SpecError(f"--append and --initrd: {len(self._data)} bytes of words", "shorten them")
        return Piece("boot information", INFORMATION, whole_pages(self._data))


def place_modules(
    segments: Sequence[Segment], modules: Sequence[Module], ram: Sequence[tuple[int, int]]
) -> list[int]:
    """Addresses at the end of RAM below 4 GiB. Raises SpecError where kernel and modules do not fit."""
    for segment in segments:
        if not any(start <= segment.gpa and segment.end <= start + size for start, size in ram):
            text = f"the kernel wants memory at {segment.gpa:#x} to {segment.end:#x}, which the guest has not"
            raise SpecError(text, "give it more --memory, or link the kernel elsewhere")
        if segment.gpa < ACPI + PAGE_SIZE and segment.end > INFORMATION:
            text = f"the kernel wants memory at {segment.gpa:#x}, where it is told of its modules"
            raise SpecError(text, f"link it outside of {INFORMATION:#x} to {ACPI + PAGE_SIZE:#x}")
    at = max(start + size for start, size in ram if start < FOUR_GIB)
    lowest = max([_MIB, *(segment.end for segment in segments if segment.gpa < at)])
    places = []
    for module in modules:
        at = at - len(module.data) & -PAGE_SIZE
        places.append(at)
    if at < lowest:
        needed = sum(len(module.data) for module in modules)
        raise SpecError(
            f"kernel and modules need {lowest + needed >> 20} MiB of memory or more", "give more --memory"
        )
    return places


def lay_out(
    segments: Sequence[Segment],
    modules: Sequence[tuple[int, Module]],
    information: Piece,
    vcpus: int,
    entry: int,
    eax: int,
) -> DirectBoot:
    """All in guest memory, and the code that starts 32-bit code at ``entry`` with EBX at the information."""
    tables = acpi_tables(PM_BASE, vcpus).placed_at(ACPI)
    pieces = [
        information,
        Piece("ACPI tables", ACPI, whole_pages(tables)),
        *_kernel_pieces(segments),
        *(Piece("module", gpa, whole_pages(module.data)) for gpa, module in modules if module.data),
    ]
    return DirectBoot(flat_entry_image(entry, eax, INFORMATION, tables[:RSDP_SIZE]), tuple(pieces))


def _kernel_pieces(segments: Sequence[Segment]) -> list[Piece]:
    """Whole pages; segments that share one are one piece."""
    pieces: list[tuple[int, bytearray]] = []
    for segment in sorted(segments):
        start = segment.gpa & -PAGE_SIZE
        if not segment.data:
            continue
        if not pieces or start > pieces[-1][0] + len(pieces[-1][1]):
            pieces.append((start, bytearray()))
        first, data = pieces[-1]
        at = segment.gpa - first
        data += bytes(max(0, at + len(segment.data) - len(data)))
        data[at : at + len(segment.data)] = segment.data
        data += bytes(-len(data) % PAGE_SIZE)
    return [Piece("kernel", gpa, bytes(data)) for gpa, data in pieces]
