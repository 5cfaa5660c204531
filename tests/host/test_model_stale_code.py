"""Code that is rewritten runs as rewritten, by whatever mapping that was done (Intel SDM volume 3, 12.6)."""

from __future__ import annotations

import struct

import pytest
from support.guest_rig import ModelRig

from casemate.guests.entry import PAGE_TABLES
from casemate.host.exits import Hlt

HALTED = Hlt(interrupts_enabled=False)
FUNCTION = 0x203000
ALIAS = 0x400000 + FUNCTION - 0x200000
BAD, ROUNDS = 0x2000, 500
NX, WRITABLE_LARGE = 1 << 63, 0x83
ENABLE_NX = "mov ecx, 0xc0000080; rdmsr; or eax, 0x800; wrmsr;"
NEW_TABLES = "out 0x80, al; mov rax, cr3; mov cr3, rax;"


def call_and_compare(store: str) -> str:
    """For ebx from 500 down: rewrite what the function returns, call it, count what is not as rewritten."""
    return f"""
                mov ebx, {ROUNDS}
        again:  {store}
                mov eax, {FUNCTION}
                call rax
                cmp eax, ebx
                je right
                inc dword [{BAD}]
        right:  dec ebx
                jne again
    """


@pytest.mark.parametrize("attributes", [NX, 0], ids=["not executable", "executable"])
@pytest.mark.parametrize("fetched_first", [True, False])
def test_code_rewritten_through_an_alias(attributes: int, fetched_first: bool) -> None:
    first = f"mov eax, {FUNCTION}; call rax;" if fetched_first else ""
    store = f"mov [{ALIAS} + 1], ebx"  # the operand of mov eax at FUNCTION
    code = ENABLE_NX + NEW_TABLES + first + call_and_compare(store) + "hlt"
    with ModelRig(code, 64) as rig:
        view = rig.ram.writable.view

        def remap() -> None:
            # Virtual 4 MiB shows physical 2 MiB.
            struct.pack_into("<Q", view, PAGE_TABLES + 0x2000 + 8 * 2, 0x200000 | WRITABLE_LARGE | attributes)

        rig.bus.on_write_port[0x80] = remap
        rig.put(FUNCTION, "mov eax, 0; ret")
        assert rig.run() == HALTED
        assert rig.ram_at(BAD, 4) == bytes(4), "rounds that ran old code"


def test_code_rewritten_by_two_aliases_in_turn() -> None:
    store = f"""
                test bl, 1
                je even
                mov [{ALIAS} + 1], ebx
                jmp written
        even:   mov [{ALIAS + 0x200000} + 1], ebx
        written:
    """
    with ModelRig(ENABLE_NX + NEW_TABLES + call_and_compare(store) + "hlt", 64) as rig:
        view = rig.ram.writable.view

        def remap() -> None:
            for index, attributes in ((2, NX), (3, 0)):
                entry = 0x200000 | WRITABLE_LARGE | attributes
                struct.pack_into("<Q", view, PAGE_TABLES + 0x2000 + 8 * index, entry)

        rig.bus.on_write_port[0x80] = remap
        rig.put(FUNCTION, "mov eax, 0; ret")
        assert rig.run() == HALTED
        assert rig.ram_at(BAD, 4) == bytes(4), "rounds that ran old code"


STORES = 300


def many_stores() -> str:
    """To the page of the function, not to the function, with a call by register after each."""
    return f"""
                mov ecx, {STORES}
        store:  mov [{FUNCTION} + 64], ecx
                mov eax, {FUNCTION + 0x1000}
                call rax
                dec ecx
                jne store
    """


@pytest.mark.parametrize("alias", [False, True], ids=["executable", "by-an-alias"])
def test_code_on_a_page_that_was_taken_for_data(alias: bool) -> None:
    store = many_stores().replace(f"[{FUNCTION} ", f"[{ALIAS if alias else FUNCTION} ")
    rounds = call_and_compare(store + f"mov [{FUNCTION} + 1], ebx").replace(f"{ROUNDS}", "16")
    with ModelRig(NEW_TABLES + f"mov eax, {FUNCTION}; call rax;" + rounds + "hlt", 64) as rig:
        entry = struct.pack("<Q", 0x200000 | WRITABLE_LARGE)
        rig.bus.on_write_port[0x80] = lambda: rig.put(PAGE_TABLES + 0x2000 + 8 * 2, entry)
        rig.put(FUNCTION, "mov eax, 0; ret")
        rig.put(FUNCTION + 0x1000, "ret")
        assert rig.run() == HALTED
        assert rig.ram_at(BAD, 4) == bytes(4), "rounds that ran old code"
        assert rig.ram_at(FUNCTION + 64, 4) == (1).to_bytes(4, "little")
