"""Instructions that store to memory, each in its own way, for 64-bit guests in either mode (Intel SDM volume 2)."""

from __future__ import annotations

from typing import NamedTuple

from casemate.native.code import guest_code

VALUE = 0x7777777777777777
FILLER = 0x5A
SOURCE = 0x28000
"""RAM that string instructions copy from."""
DEVICE = 0xFE400000
"""An address that no slot backs."""
PORT = 0x10


class StoreInstruction(NamedTuple):
    """``code`` stores to where ``point_at`` pointed."""

    name: str
    code: bytes
    emulated: bool = False
    """Whether KVM executes it by itself wherever its operand lies, for it is I/O on the other side."""


def point_at(gpa: int) -> bytes:
    """Code that sets RBX and RDI to ``gpa``, RCX and EAX to values, RSI to RAM, DX to a port, RBP to a device."""
    return guest_code("guests/stores.point_at", gpa=gpa, source=SOURCE, port=PORT, device=DEVICE)


def _store(name: str, piece: str, *, emulated: bool = False) -> StoreInstruction:
    return StoreInstruction(name, guest_code(f"guests/stores.{piece}"), emulated)


INSTRUCTIONS = (
    _store("mov byte", "mov_byte"),
    _store("mov qword", "mov_qword"),
    _store("or byte", "or_byte"),
    _store("xchg dword", "xchg_dword"),
    _store("lock cmpxchg dword", "lock_cmpxchg_dword"),
    _store("lock bts dword", "lock_bts_dword"),
    _store("movups", "movups"),
    _store("movnti qword", "movnti_qword"),
    _store("push", "push"),
    _store("rep stosb, 4 bytes", "rep_stosb"),
    _store("rep movsb from RAM, 4 bytes", "rep_movsb"),
    _store("insb", "insb", emulated=True),
    _store("rep insb, 4 bytes", "rep_insb", emulated=True),
    _store("movsb from MMIO", "movsb_from_mmio", emulated=True),
    _store("x87 fstp dword", "x87_fstp_dword"),
)

BY_NAME = {instruction.name: instruction for instruction in INSTRUCTIONS}
