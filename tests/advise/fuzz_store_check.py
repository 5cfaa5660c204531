"""Stores with random damage: bit flips, truncations, overwritten ranges, torn writes, all from fixed seeds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from casemate.firmware import guids
from casemate.firmware.variables import Variable
from casemate.firmware.varstore import HEADER_SIZE, STORE_OFFSET, StoreLayout, build_volume

RECORDS = STORE_OFFSET + HEADER_SIZE


class Damaged(NamedTuple):
    """A store, how it was damaged, and the variables that the damage did not touch."""

    data: bytes
    how: str
    whole: frozenset[Variable]
    before: tuple[Variable, ...]
    """Those in front of the first damage to any record."""


def sound_store(rng: random.Random) -> tuple[bytes, list[tuple[int, int, Variable]]]:
    """A store of random variables, and where each lies."""
    authenticated = rng.random() < 0.7
    size = rng.choice((0x20000, 0x20000, 0x84000))
    vendors = [guids.guid("8be4df61-93ca-11d2-aa0d-00e098032b8c"), rng.randbytes(16)]
    variables = [
        Variable(
            f"V{rng.randbytes(4).hex()}",
            rng.choice(vendors),
            rng.randrange(1, 8),
            rng.randbytes(rng.randrange(300)),
        )
        for _ in range(rng.randrange(1, 60))
    ]
    data = build_volume(StoreLayout(size), variables, authenticated=authenticated)
    places, offset = [], RECORDS
    for variable in variables:
        length = len(variable.encode(authenticated=authenticated))
        places.append((offset, offset + length, variable))
        offset += length
    return data, places


def damaged_stores(seed: int, count: int) -> Iterator[Damaged]:
    """``count`` stores, each with one to four damages of one kind, half of them near the headers and records."""
    rng = random.Random(seed)
    for _ in range(count):
        data, places = sound_store(rng)
        used = places[-1][1]
        how, damage = rng.choice(KINDS)
        broken = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            damage(rng, broken, used if rng.random() < 0.8 else len(broken))
        padded = bytes(broken.ljust(len(data), b"\xff"))
        whole = frozenset(variable for start, end, variable in places if padded[start:end] == data[start:end])
        before = tuple(variable for _, end, variable in places if padded[RECORDS:end] == data[RECORDS:end])
        yield Damaged(bytes(broken), how, whole, before)


def _flip(rng: random.Random, data: bytearray, limit: int) -> None:
    if data:
        data[rng.randrange(min(limit, len(data)))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray, limit: int) -> None:
    start = rng.randrange(limit)
    length = rng.randrange(1, 300)
    filling = rng.choice((b"\0", b"\xff", b"\xaa\x55\x3f\x00")) if rng.random() < 0.7 else rng.randbytes(7)
    piece = (filling * length)[:length]
    data[start : start + length] = piece[: max(0, len(data) - start)]


def _truncate(rng: random.Random, data: bytearray, limit: int) -> None:
    del data[rng.randrange(limit // 2, max(limit, 2)) :]


def _tear(rng: random.Random, data: bytearray, limit: int) -> None:
    start = rng.randrange(limit) & -0x1000
    data[start : start + 0x800] = b"\xff" * len(data[start : start + 0x800])


Damage = Callable[[random.Random, bytearray, int], None]
KINDS: list[tuple[str, Damage]] = [
    ("flipped bits", _flip),
    ("overwritten", _overwrite),
    ("truncated", _truncate),
    ("torn erase", _tear),
]
