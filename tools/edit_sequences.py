"""Random edits of variable stores by ``casemate vars``, judged by virt-fw-vars, which also writes what we read.

    python -m tools.edit_sequences --count 1000

Each sequence sets, deletes, imports, compacts, converts and leaves history behind as firmware does. At its end
virt-fw-vars must read exactly what was set, and what it writes must be read as the same. Numbers on standard output;
the exit code is 1 if the two ever differ.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from casemate.advise.store_check import check_store
from casemate.advise.variable_file import VariableFile
from casemate.cli import vars as vars_command
from casemate.firmware.guids import guid, guid_text
from casemate.firmware.variables import DELETED, IN_DELETED_TRANSITION, VENDORS, Variable
from casemate.firmware.variables_json import variables_to_json
from casemate.firmware.varstore import StoreLayout, build_volume

TOOL = Path(sys.executable).with_name("virt-fw-vars")
_QUICK, _WRITTEN = 0x20000, 0.1
"""virt-fw-vars takes a second for writing a store of more bytes than this, so it writes one in ten of those."""
_SIZES = {"2M": 0x20000, "4M": 0x84000}
_VENDORS = [*VENDORS.values(), guid("5e1e8a2c-1f0b-4c39-8f8e-0d1c2b3a4f50")]
_NAMES = [f"Boot{number:04X}" for number in range(6)] + ["BootOrder", "Lang", "grün", "a" * 60, "x"]
_VENDOR_OF = {name: _VENDORS[number % len(_VENDORS)] for number, name in enumerate(_NAMES)}
"""One vendor for each name: virt-fw-vars tells variables by their names alone."""
_ATTRIBUTES = (3, 7, 7, 7, 0x27)

State = dict[tuple[bytes, str], Variable]


@functools.cache
def _parser() -> argparse.ArgumentParser:
    """That of ``casemate vars``, which takes most of a short command's time."""
    parser = argparse.ArgumentParser()
    vars_command.add_arguments(parser)
    return parser


class Outcome(NamedTuple):
    """How a sequence ended: ``difference`` is empty if both tools agree."""

    number: int
    edits: list[str]
    difference: str


def run_sequences(seed: int, count: int, folder: Path) -> Iterator[Outcome]:
    """``count`` sequences of up to 12 edits, each of a store of its own."""
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        sequence = _Sequence(rng, folder / "VARS.fd")
        for _ in range(rng.randrange(1, 13)):
            sequence.edit()
        yield Outcome(number, sequence.edits, sequence.difference())


class _Sequence:
    """A store, what should be in it, and what was done to it."""

    def __init__(self, rng: random.Random, path: Path) -> None:
        self._rng, self._path = rng, path
        self._state: State = {}
        self._form = rng.choice(("2M", "4M"))
        self.edits: list[str] = []
        path.write_bytes(build_volume(StoreLayout(_SIZES[self._form]), (), authenticated=True))

    def edit(self) -> None:
        """One more edit; what leaves nothing to do is done anyway."""
        choices = (self._set, self._set, self._set, self._delete, self._import, self._compact, self._convert)
        step = self._rng.choice((*choices, self._age, self._repair))
        self.edits.append(step.__name__.strip("_"))
        step()

    def difference(self) -> str:
        """What either tool has that the other has not, by name; empty if nothing."""
        if self._form == "json":
            self._convert(form="4M")
        theirs, written = self._path.with_suffix(".json"), self._path.with_suffix(".theirs")
        words = [str(TOOL), "--input", str(self._path), "--output-json", str(theirs)]
        writes = self._path.stat().st_size <= _QUICK or self._rng.random() < _WRITTEN
        if writes:
            words += ["--output", str(written)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"virt-fw-vars ends with {done.returncode}: {done.stderr[-300:]}"
        entries = json.loads(theirs.read_text())["variables"]
        found = {(guid(e["guid"]), e["name"]): (e["attr"], bytes.fromhex(e["data"])) for e in entries}
        wanted = {key: (v.attributes, v.data) for key, v in self._state.items()}
        if found != wanted:
            return f"virt-fw-vars reads {_names(found)}, and {_names(wanted)} were set"
        if not writes:
            return ""
        ours = VariableFile.parse(written.read_bytes(), "theirs")
        reread = {v.key: (v.attributes, v.data) for v in ours.variables}
        if reread != wanted or not ours.is_healthy:
            return f"of what virt-fw-vars wrote we read {_names(reread)}"
        return ""

    def _run(self, action: str, *words: str) -> None:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            code = vars_command.run(_parser().parse_args([action, str(self._path), *words, "--in-place"]))
        if code:
            raise RuntimeError(f"casemate vars {action} {words} ends with {code}: {errors.getvalue()}")

    def _random(self) -> Variable:
        rng = self._rng
        size = rng.choice((1, 2, 3, 16, 100, rng.randrange(1, 3000)))
        name = rng.choice(_NAMES)
        return Variable(name, _VENDOR_OF[name], rng.choice(_ATTRIBUTES), rng.randbytes(size))

    def _set(self) -> None:
        new = self._random()
        attributes: tuple[str, ...] = ("--attributes", str(new.attributes))
        if new.key in self._state and self._rng.random() < 0.5:  # its attributes stay
            new = self._state[new.key]._replace(data=new.data)
            attributes = ()
        self._run("set", new.name, "--guid", guid_text(new.guid), "--hex", new.data.hex(), *attributes)
        self._state[new.key] = new

    def _delete(self) -> None:
        if self._state:
            key = self._rng.choice(sorted(self._state))
            self._run("delete", key[1], "--guid", guid_text(key[0]))
            del self._state[key]

    def _import(self) -> None:
        new = {v.key: v for v in (self._random() for _ in range(self._rng.randrange(4)))}
        document = self._path.with_suffix(".import")
        document.write_text(variables_to_json(new.values()))
        self._run("import", str(document))
        self._state |= new

    def _compact(self) -> None:
        self._run("compact")

    def _repair(self) -> None:
        self._run("repair")

    def _convert(self, form: str = "") -> None:
        form = form or self._rng.choice(("2M", "4M", "json"))
        self._run("migrate", "--to", form)
        self._form = form

    def _age(self) -> None:
        """Leave what firmware leaves: deleted records, and a value that was about to be replaced."""
        if self._form == "json":
            return
        data = bytearray(self._path.read_bytes())
        check = check_store(bytes(data), "store")
        at = check.layout.end - check.free
        for _ in range(self._rng.randrange(4)):
            old = self._random()
            state = IN_DELETED_TRANSITION if old.key in self._state else self._rng.choice(DELETED)
            record = bytearray(old.encode(authenticated=True))
            record[2] = state
            if at + len(record) < check.layout.end:
                data[at : at + len(record)] = record
                at += len(record)
        self._path.write_bytes(data)


def _names(found: dict[tuple[bytes, str], tuple[int, bytes]]) -> list[str]:
    return sorted(f"{name}:{len(data)}" for (_, name), (_, data) in found.items())


def main() -> int:
    """Run as many as were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    edits = wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for outcome in run_sequences(args.seed, args.count, Path(folder)):
            edits += len(outcome.edits)
            if outcome.difference:
                wrong += 1
                print(f"sequence {outcome.number}, {', '.join(outcome.edits)}: {outcome.difference}")
            if sys.stderr.isatty():
                print(f"\r{outcome.number + 1} of {args.count}", end="", file=sys.stderr)
    print(f"{args.count} sequences of {edits} edits: {wrong} differ from virt-fw-vars")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
