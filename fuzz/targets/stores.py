"""Variable stores with flipped bits, overwritten ranges, cut ends and torn erases, and damaged JSON of variables.

There is an answer, a repair that firmware likes, and no variable out of nothing (docs/guide/vars.md).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from casemate.advise.store_check import check_store, repair_store
from casemate.advise.variable_file import BUILDS, VariableFile
from casemate.errors import ImageError
from casemate.firmware import guids
from casemate.firmware.variables import Variable
from casemate.firmware.variables_json import variables_to_json
from casemate.firmware.varstore import HEADER_SIZE, STORE_OFFSET, StoreLayout, build_volume
from fuzz.edits import EDITS, JSON_WORDS, damaged
from fuzz.target import Target, quick, refusals

RECORDS = STORE_OFFSET + HEADER_SIZE
JSON_NAMES = (b'"name"', b'"guid"', b'"data"', b'"attr"', b'"time"')


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


def damaged_store(seed: int) -> Damaged:
    """A store with one to four damages of one kind, half of them near the headers and records."""
    rng = random.Random(seed)
    data, places = sound_store(rng)
    used = places[-1][1]
    how, damage = rng.choice(KINDS)
    broken = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        damage(rng, broken, used if rng.random() < 0.8 else len(broken))
    padded = bytes(broken.ljust(len(data), b"\xff"))
    whole = frozenset(variable for start, end, variable in places if padded[start:end] == data[start:end])
    before = tuple(variable for _, end, variable in places if padded[RECORDS:end] == data[RECORDS:end])
    return Damaged(bytes(broken), how, whole, before)


def judge_store(store: Damaged) -> tuple[int, int] | None:
    """How many ordinary variables were whole, and how many a salvage kept; None if the store is refused."""
    try:
        check = check_store(store.data, "VARS.fd")
    except ImageError:
        return None
    missing = set(store.before) - set(check.whole)
    assert not missing, (store.how, sorted(missing)[:3], check.findings)
    assert not {variable.key for variable in check.variables} - {v.key for v in check.whole}
    for salvage in (False, True):
        again = check_store(repair_store(store.data, check, salvage=salvage), "VARS.fd")
        assert again.findings == (), store.how
        assert again.variables == again.whole
        assert set(again.variables) >= set(check.whole)
    ordinary = {variable for variable in store.whole if variable.is_ordinary}
    return len(ordinary), len(ordinary & set(again.variables))


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


@functools.cache
def json_of(seed: int) -> bytes:
    """A sound document."""
    return variables_to_json(variable for *_, variable in sound_store(random.Random(seed))[1][:4]).encode()


def read_json(data: bytes) -> None:
    """What ``casemate vars`` does with a document: read it, and write it in every other form."""
    with refusals():
        file = VariableFile.parse(data, "VARS.json")
        for form in BUILDS:
            with refusals():
                check_store(file.convert(form), "VARS.fd")


@quick(400)
@given(st.booleans(), st.integers(0, (1 << 64) - 1), EDITS)
def check(is_json: bool, seed: int, edits: Sequence[int]) -> None:
    """A store is answered and repaired, a document read or refused."""
    if is_json:
        read_json(damaged(json_of(seed & 7), edits, (*JSON_WORDS, *JSON_NAMES)))
    else:
        judge_store(damaged_store(seed))


TARGET = Target("stores", "variable stores and the JSON form of variables", check)
