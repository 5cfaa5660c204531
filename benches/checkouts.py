"""Two checkouts of casemate in turn: firmware and Linux on the model, CPU and wall seconds of the whole process."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from benches.console import RunError
from benches.linux import APPEND, LINE, MEMORY, find_kernels
from benches.table import Cell, Table
from casemate.firmware.descriptors import find_firmware, firmware_roots
from casemate.firmware.image import FirmwareImage
from casemate.firmware.sec_core import unfit_for_sev_es
from casemate.testing.linux_init import initramfs, printing_init

HERE = Path(__file__).parents[1]
TIMEOUT_SECONDS = 300
_COLUMNS = ("guest", "CPU, s, there", "here", "here / there", "wall, s, there", "here", "here / there")


class _Guest(NamedTuple):
    name: str
    options: list[str]
    template: Path | None = None
    """Of its variables, of which each run gets fresh ones."""


def tables(runs: int, other: Path) -> list[Table]:
    """One table; ``other`` is the folder of the other checkout, whose library is built."""
    with tempfile.TemporaryDirectory() as folder:
        guests = [*_firmware(), *_linux(Path(folder))]
        seen: dict[tuple[str, Path], list[tuple[float, float]]] = {}
        for _ in range(runs):
            for guest in guests:
                for checkout in (other, HERE):
                    print(f"bench: {guest.name}, {checkout}", file=sys.stderr)
                    seen.setdefault((guest.name, checkout), []).append(_run(guest, checkout, Path(folder)))
    rows: list[tuple[Cell, ...]] = []
    for guest in guests:
        cells: list[Cell] = [guest.name]
        for number in (0, 1):
            there, here = (
                statistics.median(times[number] for times in seen[guest.name, checkout])
                for checkout in (other, HERE)
            )
            cells += [there, here, here / there]
        rows.append(tuple(cells))
    note = f"there is {other}; medians of {runs} runs in turn, of the whole process"
    return [Table("This checkout beside another, on the model", _COLUMNS, tuple(rows), (note,))]


def _firmware() -> list[_Guest]:
    pair = find_firmware(firmware_roots(os.environ), lambda code: unfit_for_sev_es(FirmwareImage.load(code)))
    common = ["--code", str(pair.code), "--machine", "pc", "--until", "Shell> "]
    sev_es = ["--guest", "sev-es", "--feature", "debug-swap"]
    return [
        _Guest("OVMF, plain", common, pair.vars_template),
        _Guest("OVMF, SEV-ES + debug-swap", [*common, *sev_es], pair.vars_template),
    ]


def _linux(folder: Path) -> list[_Guest]:
    initrd = folder / "initrd"
    initrd.write_bytes(initramfs(printing_init(LINE.decode())))
    found = []
    for kernel in find_kernels():
        options = ["--kernel", str(kernel), "--initrd", str(initrd), "--append", APPEND, "--memory", MEMORY]
        options += ["--until", "Run /init"]
        version = kernel.name.split("-")[1]
        kinds = ("plain", "sev-es")
        found += [_Guest(f"Linux {version}, {kind}", [*options, "--guest", kind]) for kind in kinds]
    return found


def _run(guest: _Guest, checkout: Path, folder: Path) -> tuple[float, float]:
    """CPU and wall seconds."""
    line = [sys.executable, "-m", "casemate", "boot", "--host", "model", "--serial", "none", *guest.options]
    if guest.template is not None:
        line += ["--vars", str(shutil.copy(guest.template, folder))]
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    done = subprocess.run(
        line, env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
    )
    if done.returncode:
        raise RunError(f"{guest.name}, {checkout}: {done.stderr.strip().splitlines()[0]}")
    wall, after = perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall
