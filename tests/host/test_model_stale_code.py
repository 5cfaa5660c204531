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
ENABLE_NX = "b9 800000c0 0f32 0d 00080000 0f30"
NEW_TABLES = "e680 0f20d8 0f22d8"


def call_and_compare(store: str) -> str:
    """For ebx from 500 down: rewrite what the function returns, call it, count what is not as rewritten."""
    rounds = struct.pack("<I", ROUNDS).hex()
    call = f"b8 {struct.pack('<I', FUNCTION).hex()} ffd0 39d8 7407 ff0425 {struct.pack('<I', BAD).hex()}"
    body = bytes.fromhex(store + call + "ffcb")
    back = struct.pack("<i", -(len(body) + 6)).hex()
    return f"bb {rounds}" + body.hex() + f"0f85 {back}"


@pytest.mark.parametrize("attributes", [NX, 0], ids=["not executable", "executable"])
@pytest.mark.parametrize("fetched_first", [True, False])
def test_code_rewritten_through_an_alias(attributes: int, fetched_first: bool) -> None:
    alias = struct.pack("<I", ALIAS + 1).hex()
    first = f"b8 {struct.pack('<I', FUNCTION).hex()} ffd0" if fetched_first else ""
    # mov [ALIAS + 1], ebx, the operand of mov eax at FUNCTION
    code = ENABLE_NX + NEW_TABLES + first + call_and_compare(f"891c25 {alias}") + "f4"
    with ModelRig(code, 64) as rig:
        view = rig.ram.writable.view

        def remap() -> None:
            # Virtual 4 MiB shows physical 2 MiB.
            struct.pack_into("<Q", view, PAGE_TABLES + 0x2000 + 8 * 2, 0x200000 | WRITABLE_LARGE | attributes)

        rig.bus.on_write_port[0x80] = remap
        view[FUNCTION : FUNCTION + 6] = bytes.fromhex("b8 00000000 c3")
        assert rig.run() == HALTED
        assert rig.ram_at(BAD, 4) == bytes(4), "rounds that ran old code"


def test_code_rewritten_by_two_aliases_in_turn() -> None:
    aliases = [struct.pack("<I", ALIAS + 0x200000 * number + 1).hex() for number in (0, 1)]
    # test bl, 1; jz: the one; else the other
    store = f"f6c301 7409 891c25 {aliases[0]} eb07 891c25 {aliases[1]}"
    with ModelRig(ENABLE_NX + NEW_TABLES + call_and_compare(store) + "f4", 64) as rig:
        view = rig.ram.writable.view

        def remap() -> None:
            for index, attributes in ((2, NX), (3, 0)):
                entry = 0x200000 | WRITABLE_LARGE | attributes
                struct.pack_into("<Q", view, PAGE_TABLES + 0x2000 + 8 * index, entry)

        rig.bus.on_write_port[0x80] = remap
        view[FUNCTION : FUNCTION + 6] = bytes.fromhex("b8 00000000 c3")
        assert rig.run() == HALTED
        assert rig.ram_at(BAD, 4) == bytes(4), "rounds that ran old code"
