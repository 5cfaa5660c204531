"""A 64 KiB firmware image around a few bytes of machine code: from the reset vector into the mode they want.

Source: Intel SDM volume 3, 9.8 and 9.9 (mode switching). The image works as ``--bios`` and as flash unit 0, for it
stays where the reset vector is, below 4 GiB. RAM must reach up to ``STACK_TOP`` and ``PAGE_TABLES`` plus 24 KiB.
"""

from __future__ import annotations

import struct
from typing import Literal

from casemate.guests.vc_handler import VECTOR, vc_handler
from casemate.native.code import guest_code

IMAGE_SIZE = 0x10000
STACK_TOP = 0x80000
PAGE_TABLES = 0x100000
"""Six pages: PML4, PDPT and four page directories that map the first 4 GiB one to one, writable, in 2 MiB pages."""

CODE32, DATA, CODE64 = 0x08, 0x10, 0x18
"""Selectors."""

Bits = Literal[16, 32, 64]

_BASE = 0xFFFF0000
_HANDLER, _IDT, _GDT = 0xFC00, 0xFE00, 0xFF00
_INTERRUPT_GATE = 0x8E00
_RESET_VECTOR = 0xFFF0
_DESCRIPTORS = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF)


def make_image(payload: bytes, bits: Bits = 16) -> bytes:
    """The image; ``payload`` starts in 16-bit real, flat 32-bit or 64-bit mode, interrupts off.

    In 16-bit mode CS is 0xF000 with the base that reset gave it: far jumps lead elsewhere. In the others all of
    memory is flat, the stack is at ``STACK_TOP``. 32-bit payloads have a #VC handler, so that they may write to ports
    as SEV-ES guests, too.
    """
    image = bytearray(b"\xf4" * IMAGE_SIZE)
    code = payload if bits == 16 else _to_protected_mode(payload, bits)
    if len(code) > _HANDLER:
        raise ValueError(f"{len(code)} bytes of code do not fit")
    image[: len(code)] = code
    struct.pack_into("<4Q", image, _GDT, *_DESCRIPTORS)
    struct.pack_into("<HI", image, _GDT + 32, 31, _BASE + _GDT)
    handler = vc_handler()
    image[_HANDLER : _HANDLER + len(handler)] = handler
    gate = struct.pack("<HHHH", _HANDLER, CODE32, _INTERRUPT_GATE, _BASE >> 16)
    image[_IDT + 8 * VECTOR : _IDT + 8 * VECTOR + 8] = gate
    struct.pack_into("<HI", image, _GDT + 40, 8 * VECTOR + 7, _BASE + _IDT)
    jump = guest_code("guests/entry.reset_vector", distance=-(_RESET_VECTOR + 3))
    image[_RESET_VECTOR : _RESET_VECTOR + len(jump)] = jump
    return bytes(image)


def _to_protected_mode(payload: bytes, bits: Bits) -> bytes:
    start = len(guest_code("guests/entry.to_protected_mode", gdt=0, next=0))
    code = guest_code("guests/entry.to_protected_mode", gdt=_GDT + 32, next=_BASE + start)
    code += guest_code("guests/entry.flat_segments", stack_top=STACK_TOP, idt=_BASE + _GDT + 40)
    if bits == 64:
        code += guest_code("guests/entry.map_four_gib", tables=PAGE_TABLES)
        behind = len(code) + len(guest_code("guests/entry.to_long_mode", next=0))
        code += guest_code("guests/entry.to_long_mode", next=_BASE + behind)
    return code + payload
