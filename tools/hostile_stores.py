"""Hostile variable stores, and whether OVMF on the model sees every variable that ``casemate vars`` shows of them.

    python -m tools.hostile_stores --code OVMF_CODE.fd --vars OVMF_VARS.fd --count 200

Each is a real store with records planted behind its own: some hold records in their values or names, some have torn
headers, states and sizes. A boot per store asks OVMF's shell what it sees. Numbers on standard output; the exit code
is 1 if ``vars`` shows a variable, or a value, that OVMF does not.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from casemate.advise.store_check import check_store
from casemate.firmware.guids import guid, guid_text
from casemate.firmware.variables import VENDORS, Variable
from casemate.machine.boot import boot
from casemate.machine.outcome import Ending
from casemate.machine.spec import MachineSpec

VENDOR = guid("6f1d8c52-0b7e-4b0e-9a53-7d0c1e2fa849")
"""Of the planted variables; forged ones are its, too, or Secure Boot's."""
VENDORS_WATCHED = (VENDOR, VENDORS["security-database"])
_BOOT_SECONDS = 100

Seen = frozenset[tuple[bytes, str, bytes]]
"""Vendor, name and value of variables."""


class HostileStore(NamedTuple):
    """A store and what was done to it."""

    number: int
    how: str
    data: bytes


class Judgement(NamedTuple):
    """What ``casemate vars`` shows, and what OVMF does, None if it came to no shell."""

    shown: Seen
    seen: Seen | None
    is_healthy: bool

    @property
    def invented(self) -> Seen:
        """What nobody but ``casemate vars`` sees."""
        return self.shown - (self.seen or frozenset())


def hostile_stores(template: bytes, seed: int, count: int) -> Iterator[HostileStore]:
    """``count`` stores made out of a sound one, the kinds in turn."""
    rng = random.Random(seed)
    check = check_store(template, "template")
    start = check.layout.end - check.free
    for number in range(count):
        how, plant = _KINDS[number % len(_KINDS)]
        planted = bytearray(_variable(rng, "first", b"1").encode(authenticated=True))
        planted += plant(rng)
        if rng.random() < 0.7:
            planted += _variable(rng, "last", b"9").encode(authenticated=True)
        data = bytearray(template)
        data[start : start + len(planted)] = planted
        yield HostileStore(number, how, bytes(data[: len(template)]))


def judge(store: bytes, code: Path, folder: Path, patience: float = _BOOT_SECONDS) -> Judgement:
    """Boot the store with the firmware ``code``, and compare.

    Firmware that a damaged store stops is waited for ``patience`` seconds, else ``_BOOT_SECONDS``.
    """
    check = check_store(store, "store")
    path = folder / "VARS.fd"
    path.write_bytes(store)
    typed = [f"dmpstore -guid {guid_text(vendor)} -sfo" for vendor in VENDORS_WATCHED]
    seconds = _BOOT_SECONDS if check.is_healthy else patience
    outcome = boot(MachineSpec(code=code, variables=path), typed=typed, timeout=seconds)
    if outcome.ending in (Ending.INTERRUPTED, Ending.TERMINATED):
        raise KeyboardInterrupt
    seen = _seen(outcome.serial) if outcome.ending is Ending.UNTIL else None
    # The shell leaves out variables without a value, which firmware enumerates.
    shown = {v for v in check.variables if v.guid in VENDORS_WATCHED and v.data}
    return Judgement(frozenset((v.guid, _plain(v.name), v.data) for v in shown), seen, check.is_healthy)


def _seen(serial: str) -> Seen:
    text = re.sub(r"\x1b\[[0-9;=]*[a-zA-Z]", "", serial)
    rows = re.findall(
        r'VariableInfo,"([^"]*)","([-0-9A-F]{36})","0x[0-9A-F]+","0x[0-9A-F]+","([0-9A-F]*)"', text
    )
    return frozenset((guid(vendor), _plain(name), bytes.fromhex(value)) for name, vendor, value in rows)


def _plain(name: str) -> str:
    """The name without what a serial line does not show."""
    return "".join(char for char in name if char.isascii() and char.isalnum())


def _variable(rng: random.Random, name: str, value: bytes) -> Variable:
    return Variable(f"{name}{rng.randrange(1000)}", VENDOR, 7, value)


def _forged(rng: random.Random) -> bytes:
    """Records as they would be valid where firmware looked for one."""
    ordinary = _variable(rng, "forged", b"ATTACKER")
    database = Variable("db", VENDORS["security-database"], 0x27, b"ATTACKER-CERT" * 3)
    chosen = rng.choice(([ordinary], [database], [ordinary, database]))
    return b"".join(variable.encode(authenticated=True) for variable in chosen)


def _carrier(rng: random.Random, *, aligned: bool = True) -> bytearray:
    """A record with records in its value; ``aligned`` puts them where one may begin."""
    name = f"evil{rng.randrange(10)}"  # the value begins at a multiple of 4
    lead = b"\0" * (4 * rng.randrange(3) if aligned else rng.randrange(1, 12))
    value = lead + _forged(rng) + bytes(rng.randrange(20))
    return bytearray(Variable(name, VENDOR, 7, value).encode(authenticated=True))


def _in_value(rng: random.Random) -> bytes:
    return bytes(_carrier(rng, aligned=rng.random() < 0.7))


def _in_name(rng: random.Random) -> bytes:
    name = "a" * rng.randrange(4) + "\u55aa\u003f" + "b" * rng.randrange(40)
    return Variable(name, VENDOR, 7, _forged(rng)).encode(authenticated=True)


def _torn_state(rng: random.Random) -> bytes:
    record = _carrier(rng)
    record[2] = rng.choice((0xFF, 0xFF, 0x7F, 0x3E, 0x3D, 0x3C, 0x00, 0xBF, 0x3B))
    return bytes(record)


def _torn_start(rng: random.Random) -> bytes:
    record = _carrier(rng)
    record[rng.randrange(2)] ^= 1 << rng.randrange(8)
    return bytes(record)


def _torn_header(rng: random.Random) -> bytes:
    record = _carrier(rng)
    cut = rng.randrange(1, 60)
    record[cut:60] = b"\xff" * (60 - cut)
    return bytes(record)


def _wrong_sizes(rng: random.Random) -> bytes:
    record, at = _carrier(rng), rng.choice((36, 40))
    old = int.from_bytes(record[at : at + 4], "little")
    new = rng.choice((0, 1, 2, old - 4, old + 4, old ^ 1 << rng.randrange(8), rng.randrange(old), 0xFFFFFFFF))
    record[at : at + 4] = max(new, 0).to_bytes(4, "little")
    return bytes(record)


def _behind_the_end(rng: random.Random) -> bytes:
    gap = rng.choice((b"\xff" * 4, b"\xff" * 64, b"\0" * 4, b"\xaa", b"\xaa\x56\x3f\0"))
    return gap + _forged(rng)


def _twice(rng: random.Random) -> bytes:
    states = [rng.choice((0x3F, 0x3E, 0x3D, 0x7F)) for _ in range(3)]
    records = b""
    for number, state in enumerate(states):
        record = bytearray(
            Variable("twice", VENDOR, 7, bytes([number]) * (number + 1)).encode(authenticated=True)
        )
        record[2] = state
        records += record
    return records


def _unwritten_number(rng: random.Random) -> bytes:
    record = _carrier(rng)
    at = rng.choice((4, 36, 40))
    record[at : at + 4] = b"\xff" * 4
    return bytes(record)


_KINDS: list[tuple[str, Callable[[random.Random], bytes]]] = [
    ("records in a value", _in_value),
    ("torn state", _torn_state),
    ("wrong sizes", _wrong_sizes),
    ("records behind the end", _behind_the_end),
    ("torn header", _torn_header),
    ("torn start", _torn_start),
    ("start of a record in a name", _in_name),
    ("a variable twice", _twice),
    ("a number never written", _unwritten_number),
]


def main() -> int:
    """Judge as many as were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--code", type=Path, required=True, help="OVMF_CODE of the build that the store is for"
    )
    parser.add_argument("--vars", type=Path, required=True, help="its template")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    done = wrong = silent = missed = 0
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):
        folder = Path(name)
        path = folder / "VARS.fd"
        path.write_bytes(args.vars.read_bytes())
        boot(MachineSpec(code=args.code, variables=path), until="Shell> ", timeout=_BOOT_SECONDS)
        template = path.read_bytes()
        for store in hostile_stores(template, args.seed, args.count):
            judgement = judge(store.data, args.code, folder)
            if judgement.invented and judgement.seen is not None:
                wrong += 1
                print(f"store {store.number}, {store.how}: invented {sorted(judgement.invented)}")
            done += 1
            silent += judgement.seen is None
            missed += len((judgement.seen or frozenset()) - judgement.shown)
            if sys.stderr.isatty():
                print(f"\r{done} of {args.count}", end="", file=sys.stderr)
    print(
        f"{done} stores: in {wrong} a variable that OVMF does not see; {silent} without a shell; "
        f"{missed} variables that only OVMF sees"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
