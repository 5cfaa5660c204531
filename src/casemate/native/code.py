"""The code of guests: assembly in the packages that use it, data once casemate is built (hatch_build.py)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from casemate.errors import UnsupportedError

_DATA = Path(__file__).with_name("guest_code.json")


def guest_code(piece: str, **parameters: int) -> bytes:
    """The ``piece`` "package/file.name" of guest code, its parameters filled in; a number is cut to their size.

    Raises UnsupportedError where casemate was built without a compiler.
    """
    contents, places = load_pieces()[piece]
    code = bytearray(contents)
    for offset, size, name, addend in places:
        value = parameters[name.lower()] + addend & (1 << 8 * size) - 1
        code[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(code)


@cache
def load_pieces() -> dict[str, tuple[bytes, list[tuple[int, int, str, int]]]]:
    """All pieces by name: the code, and offset, size, name and addend of each parameter. Raises UnsupportedError."""
    try:
        pieces = json.loads(_DATA.read_text("utf-8"))["pieces"]
    except OSError:
        raise UnsupportedError(
            "casemate was built without the machine code of its guests",
            "install it where a C compiler works, or its wheel for Linux on x86-64",
        ) from None
    return {name: (bytes.fromhex(code), places) for name, (code, places) in pieces.items()}
