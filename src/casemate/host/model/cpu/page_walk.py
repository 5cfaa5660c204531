"""Page walks of supervisor code without the rarer features of paging (AMD APM volume 2, chapter 5).

A walk either does what the processor would, or says that it does not know: whatever faults, and whatever is protected
by other bits than those for presence, writing and executing, is left to who knows all of it.
"""

from __future__ import annotations

from ctypes import c_uint32, c_uint64

from casemate.address import PAGE_SIZE
from casemate.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    EntryAt = Callable[[int, int], int | None]
    Entry = c_uint32 | c_uint64

READ, WRITE, EXECUTE = 1, 2, 4

_CR0_WP, _CR0_PG = 1 << 16, 1 << 31
_CR4_PSE, _CR4_PAE = 1 << 4, 1 << 5
_CR4_RARE = 1 << 12 | 1 << 17 | 1 << 20 | 1 << 21 | 1 << 22 | 1 << 24
"""Five levels, process contexts, SMEP, SMAP, and both kinds of protection keys."""
_EFER_LMA, _EFER_NXE = 1 << 10, 1 << 11

_PRESENT, _WRITABLE, _ACCESSED, _DIRTY, _LARGE = 1, 1 << 1, 1 << 5, 1 << 6, 1 << 7
_NO_EXECUTE = 1 << 63
_FRAME = ((1 << 40) - 1) & -PAGE_SIZE
_RESERVED = ((1 << 52) - 1) & ~((1 << 40) - 1)
_PML4_SHIFT = 39


class _Format(NamedTuple):
    shifts: tuple[int, ...]
    """Where in an address each level's index is."""
    large: tuple[int, ...]
    """Levels whose entries may be pages."""
    mask: int
    """Of an index."""
    entry: type[Entry]
    size: int


_LONG = _Format((_PML4_SHIFT, 30, 21, 12), (30, 21), 0x1FF, c_uint64, 8)
_PAE = _Format((21, 12), (21,), 0x1FF, c_uint64, 8)
_LEGACY = _Format((22, 12), (), 0x3FF, c_uint32, 4)
_LEGACY_LARGE = _Format((22, 12), (22,), 0x3FF, c_uint32, 4)


def find_page(
    gva: int, access: int, cr0: int, cr3: int, cr4: int, efer: int, entry_at: EntryAt
) -> tuple[int, int] | None:
    """The page behind ``gva``, and what may be done there until it is asked for again; None if that is not plain.

    ``access`` is READ, WRITE or EXECUTE, the rights are a sum of them. ``entry_at(gpa, size)`` is the host address of a
    table's entry, or None if that is not in memory that can be stored to. Entries are marked as accessed and dirty.
    """
    if not cr0 & _CR0_PG:
        return gva & -PAGE_SIZE, READ | WRITE | EXECUTE
    if cr4 & _CR4_RARE:
        return None
    forbidden = _RESERVED if efer & _EFER_NXE else _RESERVED | _NO_EXECUTE
    top = _top(gva, cr3, cr4, efer, entry_at)
    found = top and _walk(gva, *top, forbidden, entry_at)
    if not found:
        return None
    gpa, entries, common, united = found
    writable = common & _WRITABLE or not cr0 & _CR0_WP
    rights = READ | (WRITE if writable else 0) | (0 if united & _NO_EXECUTE else EXECUTE)
    if not rights & access:
        return None
    if not common & _ACCESSED:
        for entry in entries:
            entry.value |= _ACCESSED
    if not entries[-1].value & _DIRTY:
        if access != WRITE:
            return gpa, rights & ~WRITE
        entries[-1].value |= _DIRTY
    return gpa, rights


def _top(gva: int, cr3: int, cr4: int, efer: int, entry_at: EntryAt) -> tuple[int, _Format] | None:
    """The first table whose entries have rights, and what tables look like."""
    if not cr4 & _CR4_PAE:
        return cr3 & 0xFFFFF000, _LEGACY_LARGE if cr4 & _CR4_PSE else _LEGACY
    if efer & _EFER_LMA:
        return cr3 & _FRAME, _LONG
    hva = entry_at((cr3 & 0xFFFFFFE0) + (gva >> 30 & 3) * 8, 8)
    pointer = 0 if hva is None else c_uint64.from_address(hva).value
    plain = pointer & (_PRESENT | _RESERVED | _NO_EXECUTE) == _PRESENT
    return (pointer & _FRAME, _PAE) if plain else None


def _walk(
    gva: int, table: int, form: _Format, forbidden: int, entry_at: EntryAt
) -> tuple[int, list[Entry], int, int] | None:
    """The page, the entries on the way, the bits that all of these have, and those that any has."""
    shifts, large, mask, kind, size = form
    entries, common, united = [], -1, 0
    for shift in shifts:
        hva = entry_at(table + (gva >> shift & mask) * size, size)
        if hva is None:
            return None
        entry = kind.from_address(hva)
        value = entry.value
        if not value & _PRESENT or value & forbidden or (value & _LARGE and shift == _PML4_SHIFT):
            return None
        entries.append(entry)
        common &= value
        united |= value
        table = value & _FRAME
        if value & _LARGE and shift in large:
            break
    below = (1 << shift) - 1
    # Bit 12 of a large page is its memory type; other bits below its frame are reserved, or PSE-36's.
    if table & below & ~PAGE_SIZE:
        return None
    return (table & ~below) | (gva & below & -PAGE_SIZE), entries, common, united
