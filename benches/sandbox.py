"""What the sandbox costs: a guest of a few instructions, and firmware to its shell, with and without."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from benches.table import Table
from casemate.firmware.descriptors import find_firmware, firmware_roots
from casemate.guests.actions import tell
from casemate.guests.entry import make_image

_SHORT_RUNS_PER_RUN = 10


def tables(runs: int) -> list[Table]:
    """Milliseconds of a process, in turn with and without."""
    pair = find_firmware(firmware_roots(os.environ))
    assert pair.vars_template is not None
    with tempfile.TemporaryDirectory() as folder:
        guest, variables = Path(folder, "guest.bin"), Path(folder, "VARS.fd")
        guest.write_bytes(make_image(tell(7), 32))
        variables.write_bytes(pair.vars_template.read_bytes())
        short = _compare(["--bios", str(guest)], runs * _SHORT_RUNS_PER_RUN)
        boot = _compare(["--code", str(pair.code), "--vars", str(variables), "--until", "Shell> "], runs)
    rows = tuple(
        (name, without, difference, 100 * difference / without)
        for name, (without, difference) in (("a few instructions", short), ("OVMF to the shell", boot))
    )
    columns = ("milliseconds of a process", "without", "more in it", "%")
    return [
        Table(
            "The sandbox",
            columns,
            rows,
            (f"medians of {runs * _SHORT_RUNS_PER_RUN} and {runs} runs in turn, and of what each took more",),
        )
    ]


def _compare(words: list[str], runs: int) -> tuple[float, float]:
    """Without, and what the run beside it took more: the machine's mood changes from second to second."""
    line = [sys.executable, "-m", "casemate", "boot", "--host", "model", "--serial", "none", *words]
    found: dict[str, list[float]] = {"--no-sandbox": [], "": []}
    for _ in range(runs):
        for option, milliseconds in found.items():
            started = perf_counter()
            subprocess.run(
                [*line, option] if option else line, stdin=subprocess.DEVNULL, capture_output=True, check=True
            )
            milliseconds.append((perf_counter() - started) * 1e3)
    without, within = found["--no-sandbox"], found[""]
    more = statistics.median(one - other for one, other in zip(within, without, strict=True))
    return statistics.median(without), more
