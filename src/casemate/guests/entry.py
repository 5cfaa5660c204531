"""A 64 KiB firmware image around a few bytes of machine code: from the reset vector into the mode they want.

Source: Intel SDM volume 3, 9.8 and 9.9 (mode switching). The image works as ``--bios`` and as flash unit 0, for it
stays where the reset vector is, below 4 GiB. RAM must reach up to ``STACK_TOP`` and ``PAGE_TABLES`` plus 24 KiB.
"""

from __future__ import annotations

import struct
from typing import Literal

from casemate.guests.vc_handler import VECTOR, vc_handler

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
    image[_RESET_VECTOR : _RESET_VECTOR + 3] = b"\xe9\x0d\x00"  # jmp 0
    return bytes(image)


def _to_protected_mode(payload: bytes, bits: Bits) -> bytes:
    real_mode = (
        b"\xfa"  # cli
        + b"\x2e\x66\x0f\x01\x16" + struct.pack("<H", _GDT + 32)  # lgdt cs:[...]
        + b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0"  # mov eax, cr0; or al, 1; mov cr0, eax
    )  # fmt: skip
    start = len(real_mode) + 8
    jump = b"\x66\xea" + struct.pack("<IH", _BASE + start, CODE32)
    segments = (
        b"\x66\xb8\x10\x00\x8e\xd8\x8e\xd0\x8e\xc0"  # mov ax, DATA; mov ds, ax; mov ss, ax; mov es, ax
        + b"\xbc" + struct.pack("<I", STACK_TOP)  # mov esp, STACK_TOP
        + b"\x0f\x01\x1d" + struct.pack("<I", _BASE + _GDT + 40)  # lidt [...]
    )  # fmt: skip
    code = real_mode + jump + segments
    if bits == 64:
        code += _to_long_mode()
        code += b"\xea" + struct.pack("<IH", _BASE + len(code) + 7, CODE64)
    return code + payload


def _to_long_mode() -> bytes:
    def store(address: int, value: int) -> bytes:
        return b"\xc7\x05" + struct.pack("<II", address, value)  # mov dword [address], value

    tables = PAGE_TABLES
    pointers = store(tables, tables + 0x1003)
    for directory in range(4):
        pointers += store(tables + 0x1000 + 8 * directory, tables + 0x2003 + 0x1000 * directory)
    return (
        b"\xbf" + struct.pack("<I", tables)  # mov edi, tables
        + b"\x31\xc0\xb9\x00\x18\x00\x00\xf3\xab"  # xor eax, eax; mov ecx, 6 pages / 4; rep stosd
        + pointers
        + b"\xbf" + struct.pack("<I", tables + 0x2000)  # mov edi, directories
        + b"\xb8\x83\x00\x00\x00"  # mov eax, present | writable | large
        + b"\x89\x07\x83\xc7\x08\x05\x00\x00\x20\x00\x73\xf4"  # 1: mov [edi], eax; add edi, 8; add eax, 2M; jnc 1b
        + b"\xb8" + struct.pack("<I", tables) + b"\x0f\x22\xd8"  # mov eax, tables; mov cr3, eax
        + b"\x0f\x20\xe0\x0d\x20\x06\x00\x00\x0f\x22\xe0"  # cr4 |= PAE | OSFXSR | OSXMMEXCPT
        + b"\xb9\x80\x00\x00\xc0\x0f\x32\x0d\x00\x01\x00\x00\x0f\x30"  # EFER |= LME
        + b"\x0f\x20\xc0\x0d\x00\x00\x00\x80\x0f\x22\xc0"  # cr0 |= PG
    )  # fmt: skip
