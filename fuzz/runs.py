"""Tries inputs for as long as was asked, in children with limits; each finding becomes a file (fuzz/children.py)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from fuzz import children
from fuzz.children import Fault
from fuzz.target import LONGEST_INPUT, TALLY, Target

CPU_SECONDS_OF_A_CHILD = 30
MOST_FINDINGS = 20
"""A run ends at so many."""


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, if there is one, that is gone afterwards; ``tempfile`` uses it, here and in children."""
    memory, before = Path("/dev/shm"), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None) as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


@dataclass(frozen=True, slots=True)
class Finding:
    """A file of bytes that made ``how`` happen."""

    file: str
    how: str


@dataclass(slots=True)
class Run:
    """What one run of a target came to."""

    target: Target
    engine: str
    seed: int
    inputs: int
    units: int
    seconds: float
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "target": self.target.name,
            "engine": self.engine,
            "seed": self.seed,
            "inputs": self.inputs,
            "units": self.units,
            "unit": self.target.unit,
            "seconds": round(self.seconds, 1),
            "findings": [{"file": each.file, "how": each.how} for each in self.findings],
        }


def input_of(seed: int, number: int) -> bytes:
    """The bytes of an input: any of a run can be made again."""
    return random.Random(f"{seed}/{number}").randbytes(LONGEST_INPUT)


class Limits(NamedTuple):
    """A run ends at the first of them."""

    seconds: float = inf
    inputs: float = inf


def by_seed(
    target: Target, seed: int, limits: Limits, folder: Path, progress: Callable[[], None] = lambda: None
) -> Run:
    """Inputs from a seeded generator, which Hypothesis reads as the choices that it would make by itself."""
    start, _, first_inputs, first_units = time.monotonic(), *TALLY.read()
    ends, number = start + limits.seconds, 0
    faults: dict[str, Fault] = {}
    with scratch():
        while time.monotonic() < ends and number < limits.inputs and len(faults) < MOST_FINDINGS:
            TALLY.add(number=number)
            for fault in children.run_in_child(
                partial(_inputs, target, seed, number, Limits(ends, limits.inputs)),
                lambda: TALLY.read()[0],
                target.memory,
            ):
                faults.setdefault(_place(fault.how), fault)
            number = TALLY.read()[0] + 1
            progress()
    findings = [
        _keep(folder / f"{target.name}-{seed}-{fault.number}.bin", input_of(seed, fault.number), fault.how)
        for fault in faults.values()
    ]
    _, inputs, units = TALLY.read()
    took = time.monotonic() - start
    return Run(target, "hypothesis", seed, inputs - first_inputs, units - first_units, took, findings)


def _inputs(target: Target, seed: int, number: int, until: Limits) -> Iterable[Fault]:
    take, ends = target.on_bytes, time.process_time() + CPU_SECONDS_OF_A_CHILD
    while time.monotonic() < until.seconds and number < until.inputs and time.process_time() < ends:
        TALLY.add(number=number)
        if fault := _try(take, number, input_of(seed, number)):
            yield fault
        number += 1
    children.end_inputs()


def _try(take: Callable[[bytes], bytes | None], number: int, data: bytes) -> Fault | None:
    children.begin_input()
    try:
        whole = take(data) is not None
    except BaseException:  # whatever it is, it is a finding
        return Fault(number, traceback.format_exc(limit=-6))
    TALLY.add(inputs=whole)
    return None


def one_input(target: Target, file: Path) -> list[Fault]:
    """What comes of one file, in a child of its own."""
    data = file.read_bytes()

    def run() -> Iterable[Fault]:
        if fault := _try(target.on_bytes, 0, data):
            yield fault

    with scratch():
        return children.run_in_child(run, lambda: 0, target.memory)


def guided(target: Target, seed: int, seconds: float, folder: Path) -> Run:
    """Inputs that atheris changes by what code they reach, until its first finding; ValueError if it cannot run."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with scratch() as place:
        corpus, tally = place / "corpus", place / "tally"
        corpus.mkdir()
        tally.write_bytes(bytes(24))
        for number in range(32):
            (corpus / str(number)).write_bytes(input_of(seed, number))
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "fuzz.guided",
            target.name,
            tally,
            f"{folder}{os.sep}",
        ]
        command += [f"-seed={seed & 0xFFFFFFFF or 1}", f"-max_total_time={max(1, round(seconds))}", corpus]
        before = set(folder.iterdir())
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=os.environ | {"TMPDIR": str(place)},
        )
        new = sorted(set(folder.iterdir()) - before)
        inputs, units = (int.from_bytes(tally.read_bytes()[at : at + 8], "little") for at in (8, 16))
    if ran.returncode and not new:
        raise ValueError(f"atheris ended with exit code {ran.returncode}: {ran.stderr.strip()[-500:]}")
    findings = [Finding(str(path), _cause(ran.stdout + ran.stderr)) for path in new]
    return Run(target, "atheris", seed, inputs, units, time.monotonic() - start, findings)


def _cause(text: str) -> str:
    at = text.find("=== Uncaught Python exception")
    return text[at if at >= 0 else -2000 :][:2000]


def _place(how: str) -> str:
    """Where it was raised: findings that differ in nothing else are one."""
    lines = [line for line in how.splitlines() if line.lstrip().startswith("File ")]
    return lines[-1] if lines else how


def _keep(path: Path, data: bytes, how: str) -> Finding:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Finding(str(path), how)
