"""What a cell of ``casemate matrix`` costs beside its work: cells that do next to nothing, here and on Dask."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

from benches.table import Table

CELLS = 2000
WORKERS = 2


def tables(runs: int) -> list[Table]:
    """Milliseconds for a cell that lints one command, on two workers; and what a run costs that has nothing to do."""
    contenders = {"processes here": ["--jobs", str(WORKERS)]}
    if find_spec("distributed"):
        contenders["Dask, LocalCluster"] = ["--on", f"local:{WORKERS}"]
    rows: list[tuple[str | float, ...]] = []
    for name, options in contenders.items():
        print(f"bench: matrix: {name}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "m.toml").write_text(_matrix())
            command = [sys.executable, "-m", "casemate", "matrix", "m.toml"]
            first = _seconds([*command, *options], folder)
            again = min(_seconds(command, folder) for _ in range(max(1, min(runs, 3))))
        rows.append((name, first, first * 1000 / CELLS, first * 1000 * WORKERS / CELLS, again))
    columns = ("", "seconds", "ms a cell", "ms a cell and worker", "second run, s")
    notes = (f"{CELLS} cells, {WORKERS} workers, one run; the start of workers is part of it",)
    return [Table("casemate matrix, cells that only lint", columns, tuple(rows), notes)]


def _matrix() -> str:
    numbers = ", ".join(map(str, range(CELLS)))
    command = '["qemu-system-x86_64", "-m", "256"]'
    return f'[settings]\nwork = ["lint"]\ncommand = {command}\n[axes]\npolicy = [{numbers}]\n'


def _seconds(command: list[str], folder: str) -> float:
    start = perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - start
