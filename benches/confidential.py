"""From reset to the UEFI shell: one image as plain, SEV and SEV-ES guest of the model."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benches.boot import MEMORY, TIMEOUT_SECONDS
from benches.console import watch
from benches.table import Cell, Table
from casemate.firmware.descriptors import find_firmware, firmware_roots
from casemate.firmware.image import FirmwareImage
from casemate.firmware.sec_core import unfit_for_sev_es

GUESTS: dict[str, list[str]] = {
    "plain": [],
    "sev": ["--guest", "sev"],
    "sev-es": ["--guest", "sev-es"],
    "sev-es, debug-swap": ["--guest", "sev-es", "--feature", "debug-swap"],
}
_COLUMNS = ("guest", "banner, s", "prompt, s", "banner / plain")


def casemate(code: Path, variables: Path, options: list[str]) -> list[str]:
    """The command line of casemate; pc, for the firmware of 2022 finds no PCI devices by its #VC handler on q35."""
    flash = ["--code", str(code), "--vars", str(variables), "--machine", "pc"]
    return [
        sys.executable, "-m", "casemate", "boot", *flash, "--memory", MEMORY, "--until", "Shell> ",
        "--serial", "stdio", "--host", "model", *options,
    ]  # fmt: skip


def tables(runs: int) -> list[Table]:
    """One table, with ratios to the plain guest."""
    pair = find_firmware(firmware_roots(os.environ), lambda code: unfit_for_sev_es(FirmwareImage.load(code)))
    assert pair.vars_template is not None
    seen: dict[str, list[tuple[float, ...]]] = {name: [] for name in GUESTS}
    for _ in range(runs):
        for name, options in GUESTS.items():
            with tempfile.TemporaryDirectory() as folder:
                variables = Path(shutil.copy(pair.vars_template, folder))
                print(f"bench: {name}", file=sys.stderr)
                command = casemate(pair.code, variables, options)
                seen[name].append(
                    watch(command, (b"UEFI Interactive Shell", b"Shell> "), TIMEOUT_SECONDS).seen
                )
    medians = {
        name: [statistics.median(column) for column in zip(*times, strict=True)]
        for name, times in seen.items()
    }
    rows: list[tuple[Cell, ...]] = [
        (name, *both, both[0] / medians["plain"][0]) for name, both in medians.items()
    ]
    note = f"{pair.code}, fresh variables each time, {MEMORY} of memory, medians of {runs} interleaved runs"
    return [
        Table(
            "Boot of stock OVMF as a confidential guest of the model, pc, one CPU",
            _COLUMNS,
            tuple(rows),
            (note,),
        )
    ]
