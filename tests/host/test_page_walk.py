"""Page walks of our own, held against those of the engine (AMD APM volume 2, chapter 5)."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unicorn import UC_ARCH_X86, UC_MODE_32, UC_MODE_64, Uc, unicorn_const, x86_const

from casemate.host.model.cpu import unicorn_api
from casemate.host.model.cpu.page_walk import EXECUTE, READ, WRITE, find_page

RAM_SIZE = 0x10000
ROOT = 0x1000
GVA = 0x12_3456_7ABC
PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = (1 << bit for bit in (0, 1, 2, 5, 6, 7))
NO_EXECUTE = 1 << 63
PG_PE, WP = 1 << 31 | 1, 1 << 16
PSE, PAE, SMEP = 1 << 4, 1 << 5, 1 << 20
LME_LMA, NXE = 1 << 8 | 1 << 10, 1 << 11


@dataclass(frozen=True)
class Tables:
    """One path through tables that lie one behind the other, from ``ROOT``; the last entry is a page."""

    shifts: tuple[int, ...]
    entry: struct.Struct
    index: int
    cr4: int
    efer: int
    gva: int

    def place(self, memory: ctypes.Array[ctypes.c_char], flags: list[int]) -> None:
        for level, (shift, flag) in enumerate(zip(self.shifts, flags, strict=True)):
            at = ROOT + 0x1000 * level + (self.gva >> shift & self.index) * self.entry.size
            target = ROOT + 0x1000 * (level + 1)
            if flag & LARGE and shift != 12:
                target = 1 << shift
            self.entry.pack_into(memory, at, target | flag)

    def entries(self, memory: ctypes.Array[ctypes.c_char]) -> list[int]:
        return [
            self.entry.unpack_from(
                memory, ROOT + 0x1000 * level + (self.gva >> shift & self.index) * self.entry.size
            )[0]
            for level, shift in enumerate(self.shifts)
        ]


LONG = Tables((39, 30, 21, 12), struct.Struct("<Q"), 0x1FF, PAE, LME_LMA, GVA)
LEGACY = Tables((22, 12), struct.Struct("<I"), 0x3FF, PSE, 0, GVA & 0xFFFFFFFF)
PAE_MODE = Tables((30, 21, 12), struct.Struct("<Q"), 0x1FF, PAE, 0, GVA & 0xFFFFFFFF)


class World:
    """RAM that the engine and our walk both see."""

    def __init__(self, tables: Tables, flags: list[int], cr0: int, cr4: int, efer: int) -> None:
        self.tables, self.cr0, self.cr4, self.efer = tables, cr0, cr4, efer
        self.memory = ctypes.create_string_buffer(RAM_SIZE + 0x1000)
        self.base = ctypes.addressof(self.memory) + 0xFFF & ~0xFFF
        self.aligned = (ctypes.c_char * RAM_SIZE).from_address(self.base)
        tables.place(self.aligned, flags)

    def entry_at(self, gpa: int, size: int) -> int | None:
        return self.base + gpa if gpa + size <= RAM_SIZE else None

    def ours(self, access: int) -> tuple[int, int] | None:
        return find_page(self.tables.gva, access, self.cr0, ROOT, self.cr4, self.efer, self.entry_at)

    def engines(self, access: int) -> int | None:
        uc = Uc(UC_ARCH_X86, UC_MODE_64 if self.efer & LME_LMA else UC_MODE_32)
        uc.mem_map_ptr(0, RAM_SIZE, unicorn_const.UC_PROT_ALL, ctypes.c_void_p(self.base))
        uc.reg_write(x86_const.UC_X86_REG_CR4, self.cr4)
        uc.msr_write(0xC0000080, self.efer)
        uc.reg_write(x86_const.UC_X86_REG_CR3, ROOT)
        uc.reg_write(x86_const.UC_X86_REG_CR0, self.cr0)
        gpa = ctypes.c_uint64()
        error = unicorn_api.vmem_translate(uc._uch, self.tables.gva, access, ctypes.byref(gpa))
        return None if error else gpa.value


def rights_flags(*extra: int) -> st.SearchStrategy[int]:
    # Mostly present, so that walks get somewhere.
    return st.sets(st.sampled_from((WRITABLE, USER, ACCESSED, DIRTY, *extra))).flatmap(
        lambda bits: st.sampled_from((PRESENT, PRESENT, PRESENT, 0)).map(lambda present: present | sum(bits))
    )


def last_level(tables: Tables, flags: list[int]) -> int:
    """Of the entry that is a page: the first large one, or the last."""
    pages = (30, 21, 22) if tables is not PAE_MODE else (21,)
    return next(
        (n for n, shift in enumerate(tables.shifts) if flags[n] & LARGE and shift in pages), len(flags) - 1
    )


@given(st.data())
@pytest.mark.parametrize("access", [READ, WRITE, EXECUTE])
@pytest.mark.parametrize("tables", [LONG, LEGACY, PAE_MODE], ids=["long", "legacy", "pae"])
def test_walk_is_the_engines_wherever_it_knows(tables: Tables, access: int, data: st.DataObject) -> None:
    wide = tables is not LEGACY
    flags = [
        data.draw(rights_flags(LARGE, NO_EXECUTE) if wide else rights_flags(LARGE)) for _ in tables.shifts
    ]
    cr0 = PG_PE | data.draw(st.sampled_from((0, WP)))
    efer = tables.efer | data.draw(st.sampled_from((0, NXE)))
    world = World(tables, flags, cr0, tables.cr4, efer)
    expected = world.engines(access)
    before = world.tables.entries(world.aligned)
    found = world.ours(access)
    after = world.tables.entries(world.aligned)
    if found is None:
        assert expected is None
        assert after == before
    else:
        gpa, rights = found
        assert expected is not None
        assert gpa == expected & ~0xFFF
        assert rights & access
        assert all(world.engines(other) == expected for other in (READ, WRITE, EXECUTE) if rights & other)
        leaf = after[last_level(world.tables, flags)]
        assert leaf & ACCESSED
        assert leaf & DIRTY or not rights & WRITE


def test_walk_does_not_know_what_other_bits_protect() -> None:
    world = World(LONG, [PRESENT | WRITABLE | ACCESSED] * 4, PG_PE, PAE | SMEP, LME_LMA)
    assert world.ours(READ) is None
    world.cr4 = PAE
    assert world.ours(READ) == (0x5000, READ | EXECUTE)


def test_tables_outside_of_memory_that_can_be_stored_to_are_not_walked() -> None:
    world = World(LONG, [PRESENT | WRITABLE] * 4, PG_PE, PAE, LME_LMA)
    assert find_page(GVA, READ, PG_PE, ROOT, PAE, LME_LMA, lambda _gpa, _size: None) is None
    assert world.ours(WRITE) == (0x5000, READ | WRITE | EXECUTE)


def test_without_paging_an_address_is_itself() -> None:
    assert find_page(0x12345, WRITE, 1, ROOT, 0, 0, lambda _gpa, _size: None) == (
        0x12000,
        READ | WRITE | EXECUTE,
    )
