"""What tiny guests do, a few bytes of 32-bit code each, to be wrapped by ``entry.make_image`` (Intel SDM volume 2)."""

from __future__ import annotations

import struct
from collections.abc import Iterable

EXIT_PORT = 0xF4
RESET_PORT = 0xCF9

_HALT = b"\xfa\xf4\xeb\xfd"  # cli; 1: hlt; jmp 1b


def store(gpa: int, value: int) -> bytes:
    """Store one byte."""
    return b"\xc6\x05" + struct.pack("<IB", gpa, value)  # mov byte [gpa], value


def store_all(stores: Iterable[tuple[int, int]]) -> bytes:
    """Store bytes one after the other, as a flash driver does its commands."""
    return b"".join(store(gpa, value) for gpa, value in stores)


def tell(value: int) -> bytes:
    """End the run with a byte."""
    return (
        b"\xb0" + bytes((value,)) + b"\xe6" + bytes((EXIT_PORT,)) + _HALT
    )  # mov al, value; out EXIT_PORT, al


def tell_memory(gpa: int) -> bytes:
    """End the run with the byte at ``gpa``."""
    return (
        b"\xa0" + struct.pack("<I", gpa) + b"\xe6" + bytes((EXIT_PORT,)) + _HALT
    )  # mov al, [gpa]; out EXIT_PORT, al


def ask_for_reset() -> bytes:
    """Reset the platform."""
    return (
        b"\x66\xba" + struct.pack("<H", RESET_PORT) + b"\xb0\x06\xee" + _HALT
    )  # mov dx, RESET_PORT; mov al, 6; out


def print_text(text: str) -> bytes:
    """Send text to the serial port without a look at its status."""
    code = b"\x66\xba\xf8\x03"  # mov dx, 0x3f8
    return code + b"".join(
        b"\xb0" + bytes((byte,)) + b"\xee" for byte in text.encode()
    )  # mov al, byte; out dx, al
