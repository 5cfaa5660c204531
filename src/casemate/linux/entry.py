"""The code between the reset vector and a 64-bit kernel (Linux Documentation/arch/x86/boot.rst, 64-bit boot protocol).

It stands where firmware would: the processor starts it in real mode, it turns on paging by tables that were prepared
in RAM, and jumps. A guest with encrypted memory reads all that it maps as private. An SNP guest takes the memory here
that was not launched (AMD APM volume 3, PVALIDATE): a page that was its own already is an attack, and ends it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from casemate.native.code import guest_code

IMAGE_SIZE = 0x10000
MAX_GIB = 13
"""As much as the page tables can map in the 60 KiB that there are for them."""

_BASE = 0xFFFF0000
_RANGES, _CODE, _GDT, _GDT_POINTER, _RESET_VECTOR = 0xF000, 0xFE00, 0xFF00, 0xFF20, 0xFFF0
AP_HOLD = _BASE + 0xEF00
"""Where vCPUs but the first of an SNP guest wait, in real mode, until the kernel creates them anew."""
_DESCRIPTORS = (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
_FLAT_DESCRIPTORS = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0)
_PRESENT_WRITABLE, _LARGE = 0x3, 0x80
_STEP = 2 << 20


def entry_image(
    entry: int,
    page_tables: int,
    boot_params: int,
    unmeasured: Sequence[tuple[int, int]] = (),
    *,
    has_hold: bool = False,
) -> bytes:
    """64 KiB for the top of 4 GiB that lead to 64-bit code at ``entry``; the stack is below ``boot_params``.

    ``unmeasured`` is what an SNP guest has to take of its memory, start and end of each range. ``has_hold``: its other
    vCPUs find code at ``AP_HOLD``. Raises UnsupportedError where casemate was built without guest code.
    """
    image = bytearray(b"\xf4" * IMAGE_SIZE)

    def piece(name: str, **parameters: int) -> bytes:
        return guest_code(f"linux/entry.{name}", **parameters)

    long_mode_at = _CODE + len(piece("real_mode", gdt=0, tables=0, next=0))
    code = piece("real_mode", gdt=_GDT_POINTER, tables=page_tables, next=_BASE + long_mode_at)
    code += piece("long_mode", boot_params=boot_params)
    if unmeasured:
        code += piece("take_memory", ranges=_BASE + _RANGES)
    code += piece("to_kernel", entry=entry)
    if has_hold:
        hold = piece("ap_hold")
        image[AP_HOLD - _BASE : AP_HOLD - _BASE + len(hold)] = hold
    for index, (start, end) in enumerate((*unmeasured, (0, 0))):
        struct.pack_into("<QQ", image, _RANGES + 16 * index, start, end)
    _put_start(image, code, _DESCRIPTORS)
    return bytes(image)


def flat_entry_image(entry: int, magic: int, information: int, rsdp: bytes) -> bytes:
    """The same for 32-bit code at ``entry``, which finds ``magic`` in EAX and ``information`` in EBX.

    The image begins with ``rsdp``: it is in the last 64 KiB below 1 MiB, too, where systems look for that.
    """
    image = bytearray(b"\xf4" * IMAGE_SIZE)
    image[: len(rsdp)] = rsdp
    start = _CODE + len(guest_code("linux/entry.to_protected_mode", gdt=0, next=0))
    code = guest_code("linux/entry.to_protected_mode", gdt=_GDT_POINTER, next=_BASE + start)
    code += guest_code("linux/entry.protected_mode", information=information, entry=entry, magic=magic)
    _put_start(image, code, _FLAT_DESCRIPTORS)
    return bytes(image)


def _put_start(image: bytearray, code: bytes, descriptors: Sequence[int]) -> None:
    """Code, the descriptors that it loads, and the jump to it."""
    image[_CODE : _CODE + len(code)] = code
    struct.pack_into("<4Q", image, _GDT, *descriptors)
    struct.pack_into("<HI", image, _GDT_POINTER, 31, _BASE + _GDT)
    jump = guest_code("linux/entry.reset_vector", distance=_CODE - _RESET_VECTOR - 3)
    image[_RESET_VECTOR : _RESET_VECTOR + len(jump)] = jump


def page_tables(gpa: int, c_bit: int | None, gib: int = 4) -> bytes:
    """Pages for ``gpa`` that map ``gib`` GiB one to one, by pages of 2 MiB, encrypted if there is a C-bit."""
    flags = _PRESENT_WRITABLE | (0 if c_bit is None else 1 << c_bit)
    tables = bytearray((2 + gib) * 0x1000)
    struct.pack_into("<Q", tables, 0, gpa + 0x1000 | flags)
    struct.pack_into(f"<{gib}Q", tables, 0x1000, *(gpa + 0x1000 * page | flags for page in range(2, 2 + gib)))
    entries = (_STEP * page | flags | _LARGE for page in range(512 * gib))
    struct.pack_into(f"<{512 * gib}Q", tables, 0x2000, *entries)
    return bytes(tables)
