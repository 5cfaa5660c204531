"""What tiny guests do, a few bytes of 32-bit code each, to be wrapped by ``entry.make_image`` (Intel SDM volume 2)."""

from __future__ import annotations

from collections.abc import Iterable

from casemate.native.code import guest_code

EXIT_PORT = 0xF4
RESET_PORT = 0xCF9


def store(gpa: int, value: int) -> bytes:
    """Store one byte."""
    return guest_code("guests/actions.store", gpa=gpa, value=value)


def store_all(stores: Iterable[tuple[int, int]]) -> bytes:
    """Store bytes one after the other, as a flash driver does its commands."""
    return b"".join(store(gpa, value) for gpa, value in stores)


def tell(value: int) -> bytes:
    """End the run with a byte."""
    return guest_code("guests/actions.tell", value=value)


def tell_memory(gpa: int) -> bytes:
    """End the run with the byte at ``gpa``."""
    return guest_code("guests/actions.tell_memory", gpa=gpa)


def ask_for_reset() -> bytes:
    """Reset the platform."""
    return guest_code("guests/actions.ask_for_reset")


def print_text(text: str) -> bytes:
    """Send text to the serial port without a look at its status."""
    prints = (guest_code("guests/actions.print_byte", value=byte) for byte in text.encode())
    return guest_code("guests/actions.begin_print") + b"".join(prints)
