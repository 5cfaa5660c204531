"""The attacks of ``casemate prove``, and the guests that make them (docs/design/prove.md)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from casemate.address import FOUR_GIB
from casemate.guests.actions import store
from casemate.guests.entry import PAGE_TABLES, make_image
from casemate.guests.stores import BY_NAME, point_at
from casemate.guests.user_mode import in_user_mode

FLASH = 0xFD000000
"""A page that is flash from the start."""
LATE_FLASH = FLASH + 0x1000
"""A page that is RAM first, and flash when the guest has written to it."""
TABLE_FLASH = FLASH + 0x2000
"""A page of flash that holds a page directory."""
DIRECTORY = struct.pack("<Q", 0x87)
"""Its only entry: the first 2 MiB, for all; not accessed yet."""
SPARE_TABLE = 0x200000
"""RAM for the table above it."""

MARK_PORT, ARM_PORT, FLIP_PORT = 0x80, 0x81, 0x82
SECOND_START = 0x8000
"""RAM where a second processor begins."""
END = 0xFF
_APIC = 0xFEE00000


class Attack(NamedTuple):
    """64-bit ``code`` that attacks ``page`` in ``mode``."""

    name: str
    mode: str
    code: bytes
    page: int = FLASH


def _store(name: str, words: str, mode: str = "user") -> Attack:
    return Attack(words, mode, BY_NAME[name].code)


ATTACKS = (
    _store("mov byte", "mov, supervisor mode", "supervisor"),
    _store("mov byte", "mov"),
    Attack(
        "string (rep stos)", "user", b"\xb0\x33" + BY_NAME["rep stosb, 4 bytes"].code
    ),  # mov al, 0x33; ...
    _store("lock bts dword", "locked (lock bts)"),
    _store("lock cmpxchg dword", "locked (lock cmpxchg)"),
    _store("movups", "SSE (movups)"),
    _store("insb", "emulated by the host (ins)"),
    Attack(
        "mov, page was mapped writable",
        "user",
        b"\xc6\x03\x77" + b"\xe6" + bytes((ARM_PORT,)) + b"\xc6\x43\x08\x77",  # mov; out ARM_PORT, al; mov
        LATE_FLASH,
    ),
    Attack(
        "page table in flash, accessed bit",
        "user",
        b"\x48\xb8" + struct.pack("<Q", 1 << 39) + b"\x8a\x00",  # mov rax, 1 << 39; mov al, [rax]
        TABLE_FLASH,
    ),
    _store("x87 fstp dword", "x87 (fstp)"),
)
SEALED = Attack("mov of a SEV-ES guest", "sealed", store(FLASH, 0x77))
RACE = Attack("mov, while the slot goes and comes", "user", b"\xc6\x03\x77\xeb\xfb")  # 1: mov; jmp 1b
DMA = Attack("DMA of a device", "", b"")


class Program(NamedTuple):
    """An image, and where each attack begins in it, and the end: where to go on when the one before failed."""

    image: bytes
    starts: tuple[int, ...]


def sequence(made: Sequence[Attack]) -> Program:
    """A guest that makes these, those in supervisor mode first, and says so by ``MARK_PORT`` before each."""
    blocks = [_block(number, attack) for number, attack in enumerate(made)]
    user = sum(attack.mode == "supervisor" for attack in made)
    end = _mark(END) + b"\xeb\xfe"
    code = b"".join(blocks[:user]) + in_user_mode(b"".join(blocks[user:]) + end)
    image = make_image(code, 64)
    marks = [*map(_mark, range(len(blocks))), end]
    starts = [FOUR_GIB - len(image) + image.index(mark) for mark in marks]
    starts[user] = FOUR_GIB - len(image) + image.index(code) + len(b"".join(blocks[:user]))
    return Program(image, tuple(starts))


def protected() -> Program:
    """A 32-bit guest that makes ``SEALED``; with its handler of #VC it can do so as SEV-ES guest."""
    image = make_image(_mark(0) + SEALED.code + _mark(END) + b"\xeb\xfe", 32)
    return Program(image, ())


def race() -> bytes:
    """A guest that writes in an endless loop."""
    return make_image(in_user_mode(point_at(RACE.page) + RACE.code), 64)


def two_processors() -> bytes:
    """A guest whose first processor starts a second one, then writes to ``FLIP_PORT`` without end."""
    code = (
        store_word(_APIC + 0xF0, 0x1FF)  # on
        + store_word(_APIC + 0x310, 1 << 24) + store_word(_APIC + 0x300, 0x4500)  # INIT to processor 1
        + store_word(_APIC + 0x300, 0x4600 | SECOND_START >> 12)  # and where to start
        + b"\xe6" + bytes((FLIP_PORT,)) + b"\xeb\xfc"  # 1: out FLIP_PORT, al; jmp 1b
    )  # fmt: skip
    return make_image(code, 32)


def second_processor() -> bytes:
    """What it does at ``SECOND_START``: from real mode into flat 32-bit mode, then it writes in an endless loop."""
    real_mode = (
        b"\xfa\x2e\x66\x0f\x01\x16" + struct.pack("<H", 0x100)  # cli; lgdt cs:[0x100]
        + b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0"  # mov eax, cr0; or al, 1; mov cr0, eax
        + b"\x66\xea" + struct.pack("<IH", SECOND_START + 0x40, 8)  # jmp 8:SECOND_START + 0x40
    )  # fmt: skip
    flat = (
        b"\x66\xb8\x10\x00\x8e\xd8" + store(FLASH, 0x77) + b"\xeb\xf7"
    )  # mov ax, 16; mov ds, ax; 1: mov; jmp 1b
    table = struct.pack("<HI2x3Q", 23, SECOND_START + 0x108, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
    return real_mode.ljust(0x40, b"\x90") + flat.ljust(0xC0, b"\x90") + table


def store_word(gpa: int, value: int) -> bytes:
    """32-bit code that writes four bytes."""
    return b"\xc7\x05" + struct.pack("<II", gpa, value)  # mov dword [gpa], value


def tables_for_directory() -> tuple[tuple[int, bytes], ...]:
    """Address and contents of the entries that lead to the directory in flash."""
    return (
        (PAGE_TABLES + 8, struct.pack("<Q", SPARE_TABLE | 7)),
        (SPARE_TABLE, struct.pack("<Q", TABLE_FLASH | 7)),
    )


def _mark(number: int) -> bytes:
    return b"\xb0" + bytes((number,)) + b"\xe6" + bytes((MARK_PORT,))  # mov al, number; out MARK_PORT, al


def _block(number: int, attack: Attack) -> bytes:
    # Each at a place of its own, so that each would change something.
    return _mark(number) + point_at(attack.page + 16 * number) + attack.code
