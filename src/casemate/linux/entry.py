"""The code between the reset vector and a 64-bit kernel (Linux Documentation/arch/x86/boot.rst, 64-bit boot protocol).

It stands where firmware would: the processor starts it in real mode, it turns on paging by tables that were prepared
in RAM, and jumps. A guest with encrypted memory reads all that it maps as private.
"""

from __future__ import annotations

import struct

IMAGE_SIZE = 0x10000
PAGE_TABLES_SIZE = 6 * 0x1000

_BASE = 0xFFFF0000
_CODE, _GDT, _GDT_POINTER, _RESET_VECTOR = 0xFE00, 0xFF00, 0xFF20, 0xFFF0
_BOOT_CS, _BOOT_DS = 0x10, 0x18
_DESCRIPTORS = (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
_CR0 = 0x80000033
"""PG, NE, ET, MP, PE."""
_CR4_PAE = 0x20
_EFER, _EFER_LME = 0xC0000080, 0x100
_PRESENT_WRITABLE, _LARGE = 0x3, 0x80
_STEP = 2 << 20


def entry_image(entry: int, page_tables: int, boot_params: int) -> bytes:
    """64 KiB for the top of 4 GiB that lead to 64-bit code at ``entry``; the stack is below ``boot_params``."""
    image = bytearray(b"\xf4" * IMAGE_SIZE)
    real_mode = (
        b"\xfa\x2e\x66\x0f\x01\x16" + struct.pack("<H", _GDT_POINTER)  # cli; lgdt cs:[...]
        + b"\x66\xb8" + struct.pack("<I", _CR4_PAE) + b"\x0f\x22\xe0"  # mov eax, PAE; mov cr4, eax
        + b"\x66\xb8" + struct.pack("<I", page_tables) + b"\x0f\x22\xd8"  # mov eax, tables; mov cr3, eax
        + b"\x66\xb9" + struct.pack("<I", _EFER) + b"\x0f\x32"  # mov ecx, EFER; rdmsr
        + b"\x66\x0d" + struct.pack("<I", _EFER_LME) + b"\x0f\x30"  # or eax, LME; wrmsr
        + b"\x66\xb8" + struct.pack("<I", _CR0) + b"\x0f\x22\xc0"  # mov eax, CR0; mov cr0, eax
    )  # fmt: skip
    long_mode_at = _CODE + len(real_mode) + 8
    jump = b"\x66\xea" + struct.pack("<IH", _BASE + long_mode_at, _BOOT_CS)
    long_mode = (
        b"\xb8" + struct.pack("<I", _BOOT_DS)  # mov eax, BOOT_DS
        + b"\x8e\xd8\x8e\xc0\x8e\xd0\x8e\xe0\x8e\xe8"  # ds, es, ss, fs, gs = ax
        + b"\xbc" + struct.pack("<I", boot_params) + b"\xbe" + struct.pack("<I", boot_params)  # esp, esi
        + b"\x31\xed\x31\xff\x31\xdb"  # ebp, edi, ebx = 0
        + b"\xb8" + struct.pack("<I", entry) + b"\xff\xe0"  # mov eax, entry; jmp rax
    )  # fmt: skip
    code = real_mode + jump + long_mode
    image[_CODE : _CODE + len(code)] = code
    struct.pack_into("<4Q", image, _GDT, *_DESCRIPTORS)
    struct.pack_into("<HI", image, _GDT_POINTER, 31, _BASE + _GDT)
    image[_RESET_VECTOR : _RESET_VECTOR + 3] = b"\xe9" + struct.pack("<h", _CODE - _RESET_VECTOR - 3)
    return bytes(image)


def page_tables(gpa: int, c_bit: int | None) -> bytes:
    """Six pages for ``gpa`` that map the first 4 GiB one to one, by pages of 2 MiB, encrypted if there is a C-bit."""
    flags = _PRESENT_WRITABLE | (0 if c_bit is None else 1 << c_bit)
    tables = bytearray(PAGE_TABLES_SIZE)
    struct.pack_into("<Q", tables, 0, gpa + 0x1000 | flags)
    struct.pack_into("<4Q", tables, 0x1000, *(gpa + 0x1000 * page | flags for page in range(2, 6)))
    struct.pack_into("<2048Q", tables, 0x2000, *(_STEP * page | flags | _LARGE for page in range(2048)))
    return bytes(tables)
