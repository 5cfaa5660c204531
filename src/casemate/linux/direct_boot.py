"""What a boot loader prepares for a kernel in guest memory (Linux Documentation/arch/x86: boot.rst, zero-page.rst)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from casemate.abi.sev.snp import SnpPageType
from casemate.address import FOUR_GIB, PAGE_SIZE
from casemate.errors import SpecError
from casemate.linux.acpi import PM_BASE, acpi_tables
from casemate.linux.bzimage import LinuxKernel
from casemate.linux.entry import AP_HOLD, MAX_GIB, entry_image, page_tables

_PAGE_TABLES, _BOOT_PARAMS, _COMMAND_LINE = 0x1000, 0x10000, 0x20000
_CC_BLOB, _SECRETS, _CPUID, _LOW_END = 0x98000, 0x99000, 0x9A000, 0xA0000
ACPI = 0x9C000
"""Where the ACPI tables are; the RSDP is the first."""
_MIB = 1 << 20
_ACPI_RSDP, _CC_BLOB_POINTER, _E820_COUNT, _SETUP_HEADER, _E820_TABLE = 0x070, 0x13C, 0x1E8, 0x1F1, 0x2D0
_VIDEO_MODE, _LOADER, _RAMDISK, _COMMAND_LINE_POINTER = 0x1FA, 0x210, 0x218, 0x228
_CC_BLOB_MAGIC = 0x45444D41
_NORMAL_VIDEO, _UNKNOWN_LOADER = 0xFFFF, 0xFF
_E820_RAM, _E820_RESERVED, _E820_ACPI = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole pages of guest memory, and what they are."""

    what: str
    gpa: int
    data: bytes | memoryview
    page_type: SnpPageType = SnpPageType.NORMAL
    """How an SNP launch takes it."""


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """A kernel ready to run: ``image`` goes to the top of 4 GiB, ``pieces`` to RAM."""

    image: bytes
    pieces: tuple[Piece, ...]
    ap_start: int | None = None
    """Where the save areas of an SNP guest have all vCPUs but the first start."""


def prepare_linux(
    kernel: LinuxKernel,
    initrd: bytes,
    command_line: str,
    ram: Sequence[tuple[int, int]],
    c_bit: int | None = None,
    *,
    is_snp: bool = False,
    vcpus: int = 1,
) -> DirectBoot:
    """Lay a boot out in ``ram``, ranges of address and size in bytes; ``c_bit`` is that of a guest of SEV.

    An SNP guest finds its secrets and CPUID table, and takes the rest of its memory before the kernel starts.

    Raises SpecError if it does not fit.
    """
    words = command_line.encode(errors="surrogateescape") + b"\0"
    if len(words) > kernel.longest_command_line + 1:
        raise SpecError(
            f"--append: {len(words) - 1} bytes, this kernel takes {kernel.longest_command_line}", "shorten it"
        )
    above = [(start, size) for start, size in ram if start <= _MIB < start + size]
    if not above:
        raise SpecError("a kernel needs more than 1 MiB of memory", "give the guest more --memory")
    start, size = above[0]
    initrd_at = (start + size - len(initrd)) & -PAGE_SIZE
    needed = kernel.end + len(initrd)
    if kernel.end > initrd_at:
        raise SpecError(
            f"kernel and initrd need {-(-needed // _MIB)} MiB of memory, the guest has {(start + size) // _MIB} MiB",
            "give it more --memory",
        )
    gib = _mapped_gib(ram) if is_snp else 4
    boot_params = _boot_params(kernel.setup_header, memory_map(ram, is_snp), initrd_at, len(initrd), is_snp)
    pieces = [
        Piece("page tables", _PAGE_TABLES, page_tables(_PAGE_TABLES, c_bit, gib)),
        Piece("boot parameters", _BOOT_PARAMS, boot_params),
        Piece("command line", _COMMAND_LINE, whole_pages(words)),
        Piece("ACPI tables", ACPI, whole_pages(acpi_tables(PM_BASE, vcpus).placed_at(ACPI))),
        _kernel_piece(kernel),
    ]
    if initrd:
        pieces.append(Piece("initrd", initrd_at, whole_pages(initrd)))
    unmeasured: list[tuple[int, int]] = []
    if is_snp:
        pieces += _snp_pieces()
        unmeasured = list(_gaps(ram, pieces))
    image = entry_image(kernel.entry, _PAGE_TABLES, _BOOT_PARAMS, unmeasured, has_hold=is_snp and vcpus > 1)
    return DirectBoot(image, tuple(pieces), AP_HOLD if is_snp else None)


def _mapped_gib(ram: Sequence[tuple[int, int]]) -> int:
    """How much of memory the entry code must see to take it."""
    gib = -(-max(start + size for start, size in ram) >> 30)
    if gib > MAX_GIB:
        raise SpecError(
            f"memory ends above {MAX_GIB} GiB, too much for an SNP guest without firmware",
            "give less --memory, or boot by --bios",
        )
    return max(gib, 4)


def _gaps(ram: Sequence[tuple[int, int]], pieces: Sequence[Piece]) -> Iterator[tuple[int, int]]:
    """Start and end of what is in no piece."""
    for start, size in ram:
        end = start + size
        for piece in sorted(pieces, key=lambda piece: piece.gpa):
            if start <= piece.gpa < end:
                if start < piece.gpa:
                    yield start, piece.gpa
                start = piece.gpa + len(piece.data)
        if start < end:
            yield start, end


def _kernel_piece(kernel: LinuxKernel) -> Piece:
    segments = sorted(kernel.segments, key=lambda segment: segment.gpa)
    first = at = segments[0].gpa
    parts: list[bytes | memoryview] = []
    for segment in segments:
        parts += [bytes(max(0, segment.gpa - at)), segment.data[max(0, at - segment.gpa) :]]
        at = max(at, segment.gpa + len(segment.data))
    return Piece("kernel", first, b"".join([*parts, bytes((first - at) % PAGE_SIZE)]))


def _boot_params(
    setup_header: bytes, e820: list[tuple[int, int, int]], initrd_at: int, initrd_size: int, is_snp: bool
) -> bytes:
    page = bytearray(PAGE_SIZE)
    page[_SETUP_HEADER : _SETUP_HEADER + len(setup_header)] = setup_header
    struct.pack_into("<Q", page, _ACPI_RSDP, ACPI)
    struct.pack_into("<I", page, _CC_BLOB_POINTER, _CC_BLOB if is_snp else 0)
    struct.pack_into("<H", page, _VIDEO_MODE, _NORMAL_VIDEO)
    page[_LOADER] = _UNKNOWN_LOADER
    struct.pack_into("<II", page, _RAMDISK, initrd_at if initrd_size else 0, initrd_size)
    struct.pack_into("<I", page, _COMMAND_LINE_POINTER, _COMMAND_LINE)
    page[_E820_COUNT] = len(e820)
    for index, entry in enumerate(e820):
        struct.pack_into("<QQI", page, _E820_TABLE + 20 * index, *entry)
    return bytes(page)


def _snp_pieces() -> list[Piece]:
    """Secrets, CPUID table, and where they are (Linux arch/x86/include/asm/sev.h, cc_blob_sev_info)."""
    parts = (_SECRETS, PAGE_SIZE, 0, _CPUID, PAGE_SIZE, 0)
    blob = struct.pack("<IHHQIIQII", _CC_BLOB_MAGIC, 0, 0, *parts)
    return [
        Piece("CC blob", _CC_BLOB, whole_pages(blob)),
        Piece("secrets", _SECRETS, bytes(PAGE_SIZE), SnpPageType.SECRETS),
        Piece("CPUID table", _CPUID, bytes(PAGE_SIZE), SnpPageType.CPUID),
    ]


def memory_map(ram: Sequence[tuple[int, int]], is_snp: bool = False) -> list[tuple[int, int, int]]:
    """Start, size and type of what is in memory, as a PC's BIOS tells it (INT 15h, E820h)."""
    high = [(start, size, _E820_RAM) for start, size in ram if start >= FOUR_GIB]
    low_end = max(start + size for start, size in ram if start < FOUR_GIB)
    # What Linux maps as a device's memory must not be RAM.
    start = _CC_BLOB if is_snp else ACPI
    reserved = [(start, ACPI - start, _E820_RESERVED)] if is_snp else []
    return [
        (0, start, _E820_RAM),
        *reserved,
        (ACPI, _LOW_END - ACPI, _E820_ACPI),
        (_LOW_END, _MIB - _LOW_END, _E820_RESERVED),
        (_MIB, low_end - _MIB, _E820_RAM),
        *high,
    ]


def whole_pages(data: bytes | bytearray) -> bytes:
    """The data, with zeros up to the end of its last page."""
    return bytes(data) + bytes(-len(data) % PAGE_SIZE)
