"""Instructions that store to memory, each in its own way, for 64-bit guests in either mode (Intel SDM volume 2)."""

from __future__ import annotations

import struct
from typing import NamedTuple

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
    return (
        b"\xbb" + struct.pack("<I", gpa)  # mov ebx, gpa
        + b"\x48\xb9" + struct.pack("<Q", VALUE)  # mov rcx, VALUE
        + b"\xb8" + bytes((FILLER,)) * 4  # mov eax, fillers: what cmpxchg finds
        + b"\xbf" + struct.pack("<I", gpa)  # mov edi, gpa
        + b"\xbe" + struct.pack("<I", SOURCE)  # mov esi, SOURCE
        + b"\x66\xba" + struct.pack("<H", PORT)  # mov dx, PORT
        + b"\xbd" + struct.pack("<I", DEVICE)  # mov ebp, DEVICE
    )  # fmt: skip


INSTRUCTIONS = (
    StoreInstruction("mov byte", b"\xc6\x03\x77"),
    StoreInstruction("mov qword", b"\x48\x89\x0b"),
    StoreInstruction("or byte", b"\x80\x0b\x01"),
    StoreInstruction("xchg dword", b"\x87\x0b"),
    StoreInstruction("lock cmpxchg dword", b"\xf0\x0f\xb1\x0b"),
    StoreInstruction("lock bts dword", b"\xf0\x0f\xba\x2b\x00"),
    StoreInstruction("movups", b"\x0f\x11\x03"),
    StoreInstruction("movnti qword", b"\x48\x0f\xc3\x0b"),
    StoreInstruction("push", b"\x48\x8d\x63\x08\x51"),
    StoreInstruction("rep stosb, 4 bytes", b"\xb9\x04\x00\x00\x00\xf3\xaa"),
    StoreInstruction("rep movsb from RAM, 4 bytes", b"\xb9\x04\x00\x00\x00\xf3\xa4"),
    StoreInstruction("insb", b"\x6c", emulated=True),
    StoreInstruction("rep insb, 4 bytes", b"\xb9\x04\x00\x00\x00\xf3\x6c", emulated=True),
    StoreInstruction("movsb from MMIO", b"\x48\x89\xee\xa4", emulated=True),
    StoreInstruction("x87 fstp dword", b"\xdb\xe3\xd9\xe8\xd9\x1b"),
)

BY_NAME = {instruction.name: instruction for instruction in INSTRUCTIONS}
