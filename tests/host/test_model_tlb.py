"""What a change of page tables reaches, and what it may leave (Intel SDM volume 3A, 4.10.4; AMD APM volume 2, 5.5)."""

from __future__ import annotations

import struct

import pytest
from support.guest_rig import ModelRig

from casemate.guests.entry import PAGE_TABLES
from casemate.host.exits import Hlt

HALTED = Hlt(interrupts_enabled=False)
WINDOW = 0x400000
"""Two MiB of addresses that show the first or the second two MiB of memory."""
PLACE, OTHER_PLACE = 0x5000, 0x6000
"""In either half."""
FIRST, SECOND = 0x0, 0x200000
SEEN, BAD, ROUNDS = 0x2000, 0x2010, 500
WRITABLE, LARGE, GLOBAL = 0x3, 0x80, 0x100
TABLE = 0x2F0000
"""Of the window's small pages."""
RELOAD = "mov rax, cr3; mov cr3, rax;"
ENABLE_GLOBAL = "mov rax, cr4; or eax, 0x80; mov cr4, rax;"
TOGGLE_GLOBAL = "mov rax, cr4; xor eax, 0x80; mov cr4, rax; xor eax, 0x80; mov cr4, rax;"


class Window(ModelRig):
    """OUT to ports 0x81 and 0x82 has the window show the first or the second half, by one page or many."""

    def __init__(self, code: str, attributes: int = 0, *, is_small: bool = False) -> None:
        super().__init__(code, 64)
        self._is_small = is_small
        for port, half in ((0x81, FIRST), (0x82, SECOND)):
            self.bus.on_write_port[port] = lambda half=half: self.show(half, attributes)
            for number, at in enumerate((PLACE, OTHER_PLACE)):
                self.put(half + at, bytes([port + 0x10 * number]))

    def show(self, half: int, attributes: int) -> None:
        view, place = self.ram.writable.view, PAGE_TABLES + 0x2000 + 8 * (WINDOW >> 21)
        struct.pack_into(
            "<Q", view, place, TABLE | WRITABLE if self._is_small else half | WRITABLE | LARGE | attributes
        )
        for number in range(512):
            struct.pack_into("<Q", view, TABLE + 8 * number, half + 0x1000 * number | WRITABLE | attributes)


def seen_after(change: str, attributes: int, prologue: str = "", before: str = "") -> int:
    """What is read at PLACE once the window shows the second half and after ``change``; it was read before."""
    code = f"""
            {prologue}
            out 0x81, al
            {RELOAD}
            {before}
            mov bl, [{WINDOW + PLACE}]
            out 0x82, al
            {change}
            mov bl, [{WINDOW + PLACE}]
            mov [{SEEN}], bl
            hlt
    """
    with Window(code, attributes) as rig:
        assert rig.run() == HALTED
        return rig.ram_at(SEEN, 1)[0]


def test_a_load_of_cr3_leaves_what_is_global() -> None:
    assert seen_after(RELOAD, GLOBAL, ENABLE_GLOBAL) == 0x81


@pytest.mark.parametrize(
    ("attributes", "prologue"),
    [(0, ENABLE_GLOBAL), (GLOBAL, ""), (0, "")],
    ids=["not-global", "off", "neither"],
)
def test_a_load_of_cr3_removes_all_else(attributes: int, prologue: str) -> None:
    assert seen_after(RELOAD, attributes, prologue) == 0x82


@pytest.mark.parametrize("change", [f"invlpg [{WINDOW + PLACE}]", TOGGLE_GLOBAL], ids=["invlpg", "cr4"])
def test_what_is_global_can_be_removed(change: str) -> None:
    assert seen_after(change, GLOBAL, ENABLE_GLOBAL) == 0x82


def test_more_entries_than_are_noted_go_with_a_load_of_cr3_too() -> None:
    touch = """
            mov ecx, 256
            mov edi, 0x200000
    touch:  mov al, [edi]
            add edi, 0x1000
            dec ecx
            jne touch
    """
    assert seen_after(RELOAD, 0, ENABLE_GLOBAL, touch) == 0x82


def test_invlpg_removes_all_of_a_large_page() -> None:
    code = f"""
            out 0x81, al
            {RELOAD}
            mov bl, [{WINDOW + PLACE}]
            mov bl, [{WINDOW + OTHER_PLACE}]
            out 0x82, al
            invlpg [{WINDOW + PLACE}]
            mov bl, [{WINDOW + OTHER_PLACE}]
            mov [{SEEN}], bl
            hlt
    """
    with Window(code) as rig:
        assert rig.run() == HALTED
        assert rig.ram_at(SEEN, 1)[0] == 0x92


@pytest.mark.parametrize(
    ("change", "attributes"),
    [
        (RELOAD, 0),
        (f"invlpg [{WINDOW + PLACE}]", 0),
        (f"invlpg [{WINDOW + PLACE}]", GLOBAL),
        (TOGGLE_GLOBAL, GLOBAL),
    ],
    ids=["cr3", "invlpg", "invlpg-global", "cr4"],
)
@pytest.mark.parametrize("is_small", [False, True], ids=["large", "small"])
def test_a_call_reaches_the_code_that_the_page_tables_show_now(
    change: str, attributes: int, *, is_small: bool
) -> None:
    code = f"""
            {ENABLE_GLOBAL}
            mov ebx, {ROUNDS}
    again:  mov esi, 1
            test bl, 1
            je even
            out 0x81, al
            jmp shown
    even:   out 0x82, al
            mov esi, 2
    shown:  {change}
            mov eax, {WINDOW + PLACE}
            call rax
            call rax
            cmp edx, esi
            je right
            inc dword [{BAD}]
    right:  dec ebx
            jne again
            hlt
    """
    with Window(code, attributes, is_small=is_small) as rig:
        for half, number in ((FIRST, 1), (SECOND, 2)):
            rig.put(half + PLACE, f"mov edx, {number}; ret")
        assert rig.run() == HALTED
        assert rig.ram_at(BAD, 4) == bytes(4), "rounds that ran what was shown before"
