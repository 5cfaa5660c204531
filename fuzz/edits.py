"""Edits that turn sound files into damaged ones: bits, bytes, and pieces that come or go."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from fuzz.packed import NUMBERS, Packed

_EDGES = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\xff" * 8,
)
_SIZES = (1, 2, 3, 8, 16, 64, 1 << 20)

EDITS = st.lists(NUMBERS, min_size=1, max_size=6)
"""Numbers for ``damaged``."""


JSON_WORDS = (
    *(
        b"null",
        b"-1",
        b"1e400",
        b"99999999999999999999",
        b'""',
        b"[" * 3000,
        b"{}",
        b'"zz"',
        b"NaN",
        b"true",
        b"\xff",
    ),
    *(b'"\\ud800"', b"\\u0000", b'"0x0"', b'"0x10000000000000"', b'"snp"', b'"tdx"', b'"\\u001b[31m"'),
)
"""For ``damaged`` documents."""


def damaged(
    data: bytes, edits: Sequence[int], words: Sequence[bytes] = (), places: Sequence[tuple[int, int]] = ()
) -> bytes:
    """``data`` changed by each of ``EDITS``.

    ``words`` are pieces that mean something in its format; ``places`` (start and size, negative starts from the end)
    are where damage tells most.
    """
    changed = bytearray(data)
    for edit in edits:
        _change(changed, Packed(edit), (*words, *_EDGES), places)
    return bytes(changed)


def _change(
    data: bytearray, choose: Packed, words: Sequence[bytes], places: Sequence[tuple[int, int]]
) -> None:
    kind = choose.below(8)
    at = _place(len(data), choose, places)
    match kind:
        case 0 | 1:
            if at < len(data):
                data[at] ^= 1 << choose.below(8)
        case 2:
            piece = choose.of(words)
            data[at : at + len(piece)] = piece
        case 3:
            if at < len(data):
                data[at] = choose.bits(8)
        case 4:
            data[at:at] = choose.of(words)
        case 5:
            piece = choose.bits(32).to_bytes(4, "little")[: 1 + choose.below(4)]
            data[at : at + len(piece)] = piece
        case 6:
            del data[at : at + choose.of(_SIZES)]
        case _:
            size, source = choose.of(_SIZES[:-1]), _place(len(data), choose, places)
            data[at : at + (0 if choose.below(2) else size)] = data[source : source + size]


def _place(size: int, choose: Packed, places: Sequence[tuple[int, int]]) -> int:
    start, length = choose.of(((0, size + 1), *places))
    at = (start if start >= 0 else size + start) + choose.below(max(length, 1))
    return min(max(at, 0), size)
