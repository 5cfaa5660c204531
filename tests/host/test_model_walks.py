"""A load of CR3 shows what page tables say now, also with the value that CR3 has (Intel SDM volume 3A, 4.10.4.1)."""

from __future__ import annotations

import struct

import pytest
from support.guest_rig import ModelRig

from casemate.guests.entry import CODE64, PAGE_TABLES
from casemate.host.exits import Hlt

HALTED = Hlt(interrupts_enabled=False)
IDT_POINTER, IDT, HANDLER, PAGE_FAULT = 0x1000, 0x200000, 0x201000, 14
SEEN = 0x2000
WINDOW = 1 << 39 | 5 << 21
TABLES, OTHER_TABLES, PAGE, OTHER_PAGE = 0x2E0000, 0x2E4000, 0x210000, 0x211000
"""Of the window, from the third level to the first, and its page; the other tables lead to the other page."""
OTHER_ROOT = 0x2E8000
ENTRIES = [PAGE_TABLES + 8, TABLES, TABLES + 0x1028, TABLES + 0x2000]
"""Which the walk to the window reads."""
CHANGED = [OTHER_TABLES, OTHER_TABLES + 0x1000, OTHER_TABLES + 0x2000, OTHER_PAGE]
"""What one of them alone leads to, so that the window shows the other page."""
PRESENT_WRITABLE, ACCESSED, DIRTY, NO_EXECUTE = 0x3, 0x20, 0x40, 1 << 63
RELOAD = "mov rax, cr3; mov cr3, rax;"
LOOK = f"mov rbx, {WINDOW}; movzx eax, byte [rbx]; mov [rdi], al; inc edi;"
"""Write down what the window shows."""
BEGIN = f"lidt [{IDT_POINTER}]; mov edi, {SEEN};"


class Rig(ModelRig):
    """With the window, and a handler of page faults."""

    def __init__(self, code: str, handler: str = "hlt") -> None:
        super().__init__(f"{BEGIN} out 0x80, al; {RELOAD} {code} hlt", 64)
        self.put(IDT_POINTER, struct.pack("<HQ", 256 * 16 - 1, IDT))
        self.put(
            IDT + PAGE_FAULT * 16,
            struct.pack("<HHBBHQ", HANDLER & 0xFFFF, CODE64, 0, 0x8E, HANDLER >> 16, 0),
        )
        self.put(HANDLER, handler)
        self.put(PAGE, b"\x01")
        self.put(OTHER_PAGE, b"\x02")
        self.bus.on_write_port[0x80] = self.make_tables

    def make_tables(self) -> None:
        """The entry code makes its own first."""
        self.enter(PAGE_TABLES + 8, TABLES)
        for tables, page in ((TABLES, PAGE), (OTHER_TABLES, OTHER_PAGE)):
            self.enter(tables, tables + 0x1000)
            self.enter(tables + 0x1028, tables + 0x2000)
            self.enter(tables + 0x2000, page)
        self.put(OTHER_ROOT, self.ram_at(PAGE_TABLES, 0x1000))
        self.enter(OTHER_ROOT + 8, OTHER_TABLES)

    def enter(self, at: int, target: int) -> None:
        self.put(at, struct.pack("<Q", target | PRESENT_WRITABLE))

    def seen(self, count: int) -> list[int]:
        return list(self.ram_at(SEEN, count))


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("writer", ["store", "rep", "device"])
def test_a_table_that_was_changed_is_read_again(level: int, writer: str) -> None:
    """And nothing is shown that was not there before, whoever changed it."""
    change = {
        "store": f"mov ebx, {ENTRIES[level]}; mov rax, {CHANGED[level] | PRESENT_WRITABLE}; mov [rbx], rax;",
        "rep": f"mov r8, rdi; mov edi, {ENTRIES[level]}; mov eax, {CHANGED[level] | PRESENT_WRITABLE};"
        "mov ecx, 2; rep stosq; mov rdi, r8;",
        "device": "out 0x81, al;",
    }[writer]
    with Rig(LOOK + (RELOAD + LOOK) * 3 + change + RELOAD + LOOK) as rig:
        rig.bus.on_write_port[0x81] = lambda: rig.enter(ENTRIES[level], CHANGED[level])
        assert rig.run() == HALTED
        assert rig.seen(5) == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("level", range(4))
def test_a_page_is_marked_as_accessed_again_when_the_guest_took_the_mark_away(level: int) -> None:
    take = f"mov ebx, {ENTRIES[level]}; and qword [rbx], {~ACCESSED};"
    with Rig(LOOK + RELOAD + LOOK + take + RELOAD + LOOK) as rig:
        assert rig.run() == HALTED
        assert struct.unpack("<Q", rig.ram_at(ENTRIES[level], 8))[0] & ACCESSED


def test_a_page_is_marked_as_dirty_again_when_the_guest_took_the_mark_away() -> None:
    store = f"mov rbx, {WINDOW}; mov byte [rbx + 8], 3;"
    take = f"mov ebx, {ENTRIES[3]}; and qword [rbx], {~DIRTY};"
    with Rig(LOOK + store + RELOAD + store + take + RELOAD + LOOK + store) as rig:
        assert rig.run() == HALTED
        assert struct.unpack("<Q", rig.ram_at(ENTRIES[3], 8))[0] & DIRTY


def test_a_page_that_came_by_a_fault_can_change() -> None:
    """From missing to there needs no load of CR3; from there to another page does."""
    handler = f"out 0x82, al; mov byte [{SEEN + 8}], 1; add rsp, 8; iretq"
    code = "out 0x81, al;" + LOOK + RELOAD + LOOK + "out 0x83, al;" + RELOAD + LOOK
    with Rig(code, handler) as rig:
        rig.bus.on_write_port |= {
            0x81: lambda: rig.put(ENTRIES[3], bytes(8)),
            0x82: lambda: rig.enter(ENTRIES[3], PAGE),
            0x83: lambda: rig.enter(ENTRIES[3], OTHER_PAGE),
        }
        assert rig.run() == HALTED
        assert rig.seen(3) == [1, 1, 2]
        assert rig.ram_at(SEEN + 8, 1) == b"\x01"


def test_a_change_without_a_load_that_is_taken_back_shows_the_old_page() -> None:
    """Between the two the processor may show either page; behind the load it is the first."""
    code = LOOK + "out 0x81, al;" + f"invlpg [rbx]; {LOOK}" + "out 0x82, al;" + RELOAD + LOOK
    with Rig(code) as rig:
        rig.bus.on_write_port |= {
            0x81: lambda: rig.enter(ENTRIES[3], OTHER_PAGE),
            0x82: lambda: rig.enter(ENTRIES[3], PAGE | ACCESSED),
        }
        assert rig.run() == HALTED
        assert rig.seen(3) == [1, 2, 1]


def test_other_tables_show_other_pages() -> None:
    """There and back."""
    load = f"mov rax, cr3; xor rax, {PAGE_TABLES ^ OTHER_ROOT}; mov cr3, rax;"
    with Rig((LOOK + load) * 4) as rig:
        assert rig.run() == HALTED
        assert rig.seen(4) == [1, 2, 1, 2]


def test_what_efer_allows_is_looked_at_again() -> None:
    """With EFER.NXE off the bit that it gives a meaning is reserved: the read behind the load faults."""
    nxe = "mov ecx, 0xc0000080; rdmsr; btc eax, 11; wrmsr;"
    handler = f"pop rax; mov [{SEEN + 8}], eax; hlt"
    with Rig(nxe + "out 0x81, al;" + LOOK + RELOAD + LOOK + nxe + RELOAD + LOOK, handler) as rig:
        entry = struct.pack("<Q", PAGE | PRESENT_WRITABLE | NO_EXECUTE)
        rig.bus.on_write_port[0x81] = lambda: rig.put(ENTRIES[3], entry)
        assert rig.run() == HALTED
        assert rig.seen(2) == [1, 1]
        assert rig.ram_at(SEEN + 8, 1) == b"\x09"  # reserved, present


@pytest.mark.parametrize("pages", [8, 400, 1000])
def test_more_tables_than_are_remembered_are_read_again_too(pages: int) -> None:
    """Each page of two tables is touched, then all show another one."""
    touch = f"""
            mov rbx, {WINDOW}
            mov ecx, {pages}
    LABEL:  mov al, [rbx]
            cmp al, VALUE
            jne bad
            add rbx, 0x1000
            dec ecx
            jne LABEL
    """
    first, again, changed = (
        touch.replace("LABEL", name).replace("VALUE", value)
        for name, value in (("first", "1"), ("again", "1"), ("changed", "2"))
    )
    code = (
        f"out 0x81, al; {first} {RELOAD} {again} out 0x82, al; {RELOAD} {changed} mov byte [{SEEN}], 1; bad:"
    )

    def show(rig: Rig, page: int) -> None:
        rig.enter(TABLES + 0x1030, TABLES + 0x3000)
        for number in range(1024):
            rig.enter(TABLES + 0x2000 + 8 * number, page)

    with Rig(code) as rig:
        rig.bus.on_write_port |= {0x81: lambda: show(rig, PAGE), 0x82: lambda: show(rig, OTHER_PAGE)}
        assert rig.run() == HALTED
        assert rig.seen(1) == [1]


@pytest.mark.parametrize("level", ["directory", "table"])
def test_tables_of_32_bit_entries_are_read_again_too(level: str) -> None:
    directory, table, other_table, top, window = 0x2E0000, 0x2E1000, 0x2E2000, 0x2E3000, 0x30_0000
    entry, changed = (
        (directory, other_table) if level == "directory" else (table + 4 * (window >> 12), OTHER_PAGE)
    )
    look = f"mov al, [{window}]; mov [edi], al; inc edi;"
    code = f"""
        mov edi, {SEEN}; mov eax, {directory}; mov cr3, eax; mov eax, cr0; or eax, 0x80000000; mov cr0, eax
        {look} mov dword [{entry}], {changed | PRESENT_WRITABLE}; mov eax, cr3; mov cr3, eax; {look} hlt
    """
    with ModelRig(code, 32) as rig:
        for at, first, shown in ((table, 0, PAGE), (other_table, 0, OTHER_PAGE), (top, 0xFFC00000, 0)):
            pages = [first + 4096 * number for number in range(1024)]
            pages[window >> 12] = shown or pages[window >> 12]
            rig.put(at, struct.pack("<1024I", *(page | PRESENT_WRITABLE for page in pages)))
        rig.put(directory, struct.pack("<I", table | PRESENT_WRITABLE))
        rig.put(directory + 4092, struct.pack("<I", top | PRESENT_WRITABLE))
        rig.put(PAGE, b"\x01")
        rig.put(OTHER_PAGE, b"\x02")
        assert rig.run() == HALTED
        assert list(rig.ram_at(SEEN, 2)) == [1, 2]
