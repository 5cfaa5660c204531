"""ELF and multiboot kernels of a few instructions."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from support.assembler import assemble

LOAD_AT = 0x400000
NOTE_ENTRY = 18
I386, X86_64 = 3, 62
MULTIBOOT = 0x1BADB002

PRINT = """
    print:  mov al, [esi]           # text at ESI to the serial port
            test al, al
            je printed
            mov edx, 0x3fd
    busy:   in al, dx
            test al, 0x20
            je busy
            mov al, [esi]
            mov edx, 0x3f8
            out dx, al
            inc esi
            jmp print
    printed: ret
"""


def multiboot_header(flags: int = 0, addresses: Sequence[int] = ()) -> bytes:
    """Magic, flags and checksum, and addresses where the flags say so."""
    return struct.pack(
        f"<3I{len(addresses)}I", MULTIBOOT, flags, -(MULTIBOOT + flags) & 0xFFFFFFFF, *addresses
    )


def elf(
    data: bytes,
    entry: int = LOAD_AT,
    *,
    bits: int = 32,
    machine: int | None = None,
    at: int = LOAD_AT,
    linear: int | None = None,
    zeros: int = 0,
    note: bytes = b"",
) -> bytes:
    """One segment of ``data``, and ``zeros`` behind it; ``note`` is the content of a note segment."""
    is_64 = bits == 64
    head, row = (64, 56) if is_64 else (52, 32)
    first = head + 2 * row
    note_at = first + len(data)
    linear = at if linear is None else linear
    ident = b"\x7fELF" + bytes([2 if is_64 else 1, 1, 1]) + bytes(9)
    machine = machine or (X86_64 if is_64 else I386)
    rest = (0, head, row, 2, 0, 0, 0)
    header = ident + struct.pack("<HHI" + ("QQQ" if is_64 else "III"), 2, machine, 1, entry, head, 0)
    header += struct.pack("<I6H", *rest)
    size = len(data) + zeros
    if is_64:
        rows = struct.pack("<IIQQQQQQ", 1, 7, first, linear, at, len(data), size, 0)
        rows += struct.pack("<IIQQQQQQ", 4, 4, note_at, 0, 0, len(note), len(note), 0)
    else:
        rows = struct.pack("<8I", 1, first, linear, at, len(data), size, 7, 0)
        rows += struct.pack("<8I", 4, note_at, 0, 0, len(note), len(note), 4, 0)
    return header + rows + data + note


def pvh_note(entry: int = LOAD_AT, size: int = 4) -> bytes:
    """The entry of Xen's PVH, behind a note of somebody else."""
    other = struct.pack("<III", 4, 4, 1) + b"GNU\0" + bytes(4)
    return other + struct.pack("<III", 4, size, NOTE_ENTRY) + b"Xen\0" + entry.to_bytes(size, "little")


def code(source: str) -> bytes:
    """32-bit code at ``LOAD_AT`` that may call ``print``; the stack is in the middle of the first megabyte."""
    return assemble("mov esp, 0x80000;" + source + PRINT, 32, origin=LOAD_AT)
