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
from casemate.native.code import guest_code

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


def _piece(name: str, **parameters: int) -> bytes:
    return guest_code(f"prove/attacks.{name}", **parameters)


def _store(name: str, words: str, mode: str = "user") -> Attack:
    return Attack(words, mode, BY_NAME[name].code)


ATTACKS = (
    _store("mov byte", "mov, supervisor mode", "supervisor"),
    _store("mov byte", "mov"),
    Attack("string (rep stos)", "user", _piece("load_filler") + BY_NAME["rep stosb, 4 bytes"].code),
    _store("lock bts dword", "locked (lock bts)"),
    _store("lock cmpxchg dword", "locked (lock cmpxchg)"),
    _store("movups", "SSE (movups)"),
    _store("insb", "emulated by the host (ins)"),
    Attack(
        "mov, page was mapped writable",
        "user",
        _piece("store_arm_store", port=ARM_PORT),
        LATE_FLASH,
    ),
    Attack(
        "page table in flash, accessed bit",
        "user",
        _piece("touch_table"),
        TABLE_FLASH,
    ),
    _store("x87 fstp dword", "x87 (fstp)"),
)
SEALED = Attack("mov of a SEV-ES guest", "sealed", store(FLASH, 0x77))
RACE = Attack("mov, while the slot goes and comes", "user", _piece("store_for_ever"))
DMA = Attack("DMA of a device", "", b"")


class Program(NamedTuple):
    """An image, and where each attack begins in it, and the end: where to go on when the one before failed."""

    image: bytes
    starts: tuple[int, ...]


def sequence(made: Sequence[Attack]) -> Program:
    """A guest that makes these, those in supervisor mode first, and says so by ``MARK_PORT`` before each."""
    blocks = [_block(number, attack) for number, attack in enumerate(made)]
    user = sum(attack.mode == "supervisor" for attack in made)
    end = _mark(END) + _piece("spin")
    code = b"".join(blocks[:user]) + in_user_mode(b"".join(blocks[user:]) + end)
    image = make_image(code, 64)
    marks = [*map(_mark, range(len(blocks))), end]
    starts = [FOUR_GIB - len(image) + image.index(mark) for mark in marks]
    starts[user] = FOUR_GIB - len(image) + image.index(code) + len(b"".join(blocks[:user]))
    return Program(image, tuple(starts))


def protected() -> Program:
    """A 32-bit guest that makes ``SEALED``; with its handler of #VC it can do so as SEV-ES guest."""
    image = make_image(_mark(0) + SEALED.code + _mark(END) + _piece("spin"), 32)
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
        + _piece("flip_for_ever", port=FLIP_PORT)
    )  # fmt: skip
    return make_image(code, 32)


def second_processor() -> bytes:
    """What it does at ``SECOND_START``: from real mode into flat 32-bit mode, then it writes in an endless loop."""
    real_mode = _piece("second_processor", next=SECOND_START + 0x40)
    flat = _piece("second_processor_flat", gpa=FLASH)
    table = struct.pack("<HI2x3Q", 23, SECOND_START + 0x108, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
    return real_mode.ljust(0x40, b"\x90") + flat.ljust(0xC0, b"\x90") + table


def store_word(gpa: int, value: int) -> bytes:
    """32-bit code that writes four bytes."""
    return _piece("store_word", gpa=gpa, value=value)


def tables_for_directory() -> tuple[tuple[int, bytes], ...]:
    """Address and contents of the entries that lead to the directory in flash."""
    return (
        (PAGE_TABLES + 8, struct.pack("<Q", SPARE_TABLE | 7)),
        (SPARE_TABLE, struct.pack("<Q", TABLE_FLASH | 7)),
    )


def _mark(number: int) -> bytes:
    return _piece("mark", value=number, port=MARK_PORT)


def _block(number: int, attack: Attack) -> bytes:
    # Each at a place of its own, so that each would change something.
    return _mark(number) + point_at(attack.page + 16 * number) + attack.code
