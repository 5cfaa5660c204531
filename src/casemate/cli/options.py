"""Values of options, as argparse types and behind it (Python's argparse)."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace

from casemate.errors import SpecError


def integer(text: str) -> int:
    """A number in any base that Python writes; argparse shows this function's name."""
    return int(text, 0)


def seconds(text: str) -> float:
    """A positive, finite number. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no positive number of seconds")
    return value


def option_name(attribute: str) -> str:
    """``--tik-file`` of ``tik_file``, as people write it."""
    return f"--{attribute.replace('_', '-')}"


def hex_bytes(args: Namespace, attribute: str, size: int, remedy: str = "") -> bytes | None:
    """An option's value of ``size`` bytes in hex, None if it was not given. Raises SpecError if it is not that."""
    text = getattr(args, attribute)
    if text is None:
        return None
    try:
        value = bytes.fromhex(text.lower().removeprefix("0x"))
    except ValueError:
        value = b""
    if len(value) != size:
        cause = f"{option_name(attribute)} {text!r} is not {2 * size} hex digits"
        raise SpecError(cause, remedy or f"give {size} bytes")
    return value
