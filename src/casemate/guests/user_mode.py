"""From 64-bit supervisor mode into user mode, for guests whose stores the processor itself must make (Intel SDM).

Hosts differ in who executes supervisor code: some interpret it. User code runs on the processor everywhere.
"""

from __future__ import annotations

import struct

from casemate.guests.entry import PAGE_TABLES, STACK_TOP

USER_STACK = STACK_TOP - 0x1000

_USER_DATA, _USER_CODE = 0x23, 0x2B
_RFLAGS = 0x3002
"""I/O privilege level 3, so that ports stay open."""
_DESCRIPTORS = (
    0,
    0x00CF9B000000FFFF,
    0x00CF93000000FFFF,
    0x00AF9B000000FFFF,
    0x00CFF3000000FFFF,
    0x00AFFB000000FFFF,
)


def in_user_mode(payload: bytes) -> bytes:
    """64-bit code for ``entry.make_image`` that opens all pages to user mode and runs ``payload`` there."""
    return _open_pages() + _load_descriptors() + _leave(payload)


def _open_pages() -> bytes:
    return (
        b"\xbf" + struct.pack("<I", PAGE_TABLES)  # mov edi, PAGE_TABLES
        + b"\xb9\x00\x0c\x00\x00"  # mov ecx, entries of 6 pages
        + b"\x83\x0f\x04\x83\xc7\x08\xff\xc9\x75\xf6"  # 1: or dword [rdi], user; add edi, 8; dec ecx; jnz 1b
        + b"\x0f\x20\xd8\x0f\x22\xd8"  # mov rax, cr3; mov cr3, rax
    )  # fmt: skip


def _load_descriptors() -> bytes:
    pushes = b"".join(b"\x48\xb8" + struct.pack("<Q", entry) + b"\x50" for entry in reversed(_DESCRIPTORS))
    return (
        pushes  # mov rax, entry; push rax
        + b"\x48\x89\xe0\x48\x83\xec\x10"  # mov rax, rsp; sub rsp, 16
        + b"\x66\xc7\x04\x24" + struct.pack("<H", 8 * len(_DESCRIPTORS) - 1)  # mov word [rsp], limit
        + b"\x48\x89\x44\x24\x02\x0f\x01\x14\x24"  # mov [rsp+2], rax; lgdt [rsp]
    )  # fmt: skip


def _leave(payload: bytes) -> bytes:
    return (
        b"\x6a" + bytes((_USER_DATA,))  # push SS
        + b"\x68" + struct.pack("<I", USER_STACK)  # push RSP
        + b"\x68" + struct.pack("<I", _RFLAGS)  # push RFLAGS
        + b"\x6a" + bytes((_USER_CODE,))  # push CS
        + b"\x48\x8d\x05\x03\x00\x00\x00\x50\x48\xcf"  # lea rax, [rip + 3]; push rax; iretq
        + payload
    )  # fmt: skip
