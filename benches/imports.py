"""What it costs to import casemate and to start its command, in fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
from time import perf_counter

from benches.table import Table

_STATEMENTS = ("pass", "import casemate", "import casemate.cli")


def tables(runs: int) -> list[Table]:
    """Milliseconds of whole processes."""
    commands = {f"python -c '{text}'": [sys.executable, "-c", text] for text in _STATEMENTS}
    commands["casemate --version"] = [sys.executable, "-m", "casemate", "--version"]
    commands["casemate measure --help"] = [sys.executable, "-m", "casemate", "measure", "--help"]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            start = perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append((perf_counter() - start) * 1000)
    rows = tuple((name, statistics.median(values)) for name, values in times.items())
    return [Table("Start of a process", ("", "ms"), rows, (f"medians of {runs} interleaved runs",))]
