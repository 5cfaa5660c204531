"""The code between the reset vector and a 64-bit kernel (Linux Documentation/arch/x86/boot.rst, 64-bit boot protocol).

It stands where firmware would: the processor starts it in real mode, it turns on paging by tables that were prepared
in RAM, and jumps. A guest with encrypted memory reads all that it maps as private. An SNP guest takes the memory here
that was not launched (AMD APM volume 3, PVALIDATE): a page that was its own already is an attack, and ends it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

IMAGE_SIZE = 0x10000
MAX_GIB = 13
"""As much as the page tables can map in the 60 KiB that there are for them."""

_BASE = 0xFFFF0000
_RANGES, _CODE, _GDT, _GDT_POINTER, _RESET_VECTOR = 0xF000, 0xFE00, 0xFF00, 0xFF20, 0xFFF0
_BOOT_CS, _BOOT_DS = 0x10, 0x18
_DESCRIPTORS = (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
_CR0 = 0x80000033
"""PG, NE, ET, MP, PE."""
_CR4_PAE = 0x20
_EFER, _EFER_LME = 0xC0000080, 0x100
_PRESENT_WRITABLE, _LARGE = 0x3, 0x80
_STEP = 2 << 20
_GHCB_MSR, _TERMINATE = 0xC0010130, 0x100
_PVALIDATE, _VMGEXIT = b"\xf2\x0f\x01\xff", b"\xf3\x0f\x01\xd9"
_SIZE_MISMATCH = 6


def entry_image(
    entry: int, page_tables: int, boot_params: int, unmeasured: Sequence[tuple[int, int]] = ()
) -> bytes:
    """64 KiB for the top of 4 GiB that lead to 64-bit code at ``entry``; the stack is below ``boot_params``.

    ``unmeasured`` is what an SNP guest has to take of its memory, start and end of each range.
    """
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
        + (_take(_BASE + _RANGES) if unmeasured else b"")
        + b"\x31\xed\x31\xff\x31\xdb"  # ebp, edi, ebx = 0
        + b"\xb8" + struct.pack("<I", entry) + b"\xff\xe0"  # mov eax, entry; jmp rax
    )  # fmt: skip
    code = real_mode + jump + long_mode
    image[_CODE : _CODE + len(code)] = code
    for index, (start, end) in enumerate((*unmeasured, (0, 0))):
        struct.pack_into("<QQ", image, _RANGES + 16 * index, start, end)
    struct.pack_into("<4Q", image, _GDT, *_DESCRIPTORS)
    struct.pack_into("<HI", image, _GDT_POINTER, 31, _BASE + _GDT)
    image[_RESET_VECTOR : _RESET_VECTOR + 3] = b"\xe9" + struct.pack("<h", _CODE - _RESET_VECTOR - 3)
    return bytes(image)


def page_tables(gpa: int, c_bit: int | None, gib: int = 4) -> bytes:
    """Pages for ``gpa`` that map ``gib`` GiB one to one, by pages of 2 MiB, encrypted if there is a C-bit."""
    flags = _PRESENT_WRITABLE | (0 if c_bit is None else 1 << c_bit)
    tables = bytearray((2 + gib) * 0x1000)
    struct.pack_into("<Q", tables, 0, gpa + 0x1000 | flags)
    struct.pack_into(f"<{gib}Q", tables, 0x1000, *(gpa + 0x1000 * page | flags for page in range(2, 2 + gib)))
    entries = (_STEP * page | flags | _LARGE for page in range(512 * gib))
    struct.pack_into(f"<{512 * gib}Q", tables, 0x2000, *entries)
    return bytes(tables)


def _take(ranges: int) -> bytes:
    """Validate all pages of the ranges listed at ``ranges``, by 2 MiB where the host gives them so."""
    return (
        b"\xbb" + struct.pack("<I", ranges)  # mov ebx, ranges
        + b"\x4c\x8b\x03\x4c\x8b\x4b\x08\x48\x83\xc3\x10"  # next: mov r8, [rbx]; mov r9, [rbx + 8]; add rbx, 16
        + b"\x4d\x85\xc9\x74\x64"  # test r9, r9; jz done
        + b"\x4d\x39\xc8\x73\xeb"  # page: cmp r8, r9; jae next
        + b"\x41\xf7\xc0\xff\xff\x1f\x00\x75\x29"  # test r8d, 2 MiB - 1; jnz small
        + b"\x49\x8d\x90\x00\x00\x20\x00\x4c\x39\xca\x77\x1d"  # lea rdx, [r8 + 2 MiB]; cmp rdx, r9; ja small
        + b"\x4c\x89\xc0\x31\xc9\xff\xc1\x89\xca" + _PVALIDATE  # mov rax, r8; ecx = edx = 1
        + b"\x72\x28\x83\xf8" + bytes([_SIZE_MISMATCH]) + b"\x74\x09"  # jc refused; cmp eax, 6; je small
        + b"\x49\x81\xc0\x00\x00\x20\x00\xeb\x16"  # add r8, 2 MiB; jmp check
        + b"\x4c\x89\xc0\x31\xc9\x31\xd2\xff\xc2" + _PVALIDATE  # small: mov rax, r8; ecx = 0; edx = 1
        + b"\x72\x0b\x49\x81\xc0\x00\x10\x00\x00"  # jc refused; add r8, 4 KiB
        + b"\x85\xc0\x74\xaf"  # check: test eax, eax; jz page
        + b"\xb9" + struct.pack("<I", _GHCB_MSR)  # refused: mov ecx, GHCB_MSR
        + b"\xb8" + struct.pack("<I", _TERMINATE) + b"\x31\xd2\x0f\x30"  # mov eax, TERMINATE; xor edx, edx; wrmsr
        + _VMGEXIT + b"\xf4"  # vmgexit; hlt
    )  # fmt: skip
