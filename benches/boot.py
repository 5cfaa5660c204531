"""From reset to the UEFI shell: ``casemate boot`` beside QEMU's TCG, with the same files, memory and board."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benches.console import Watched, watch
from benches.table import Table
from casemate.firmware.descriptors import find_firmware, firmware_roots

TEXTS = (b"UEFI Interactive Shell", b"Shell> ")
MEMORY = "256M"
TIMEOUT_SECONDS = 300.0

_COLUMNS = ("seconds to", "first byte", "banner", "prompt", "peak MiB")


def casemate(code: Path, variables: Path) -> list[str]:
    """The command line of casemate."""
    options = ["--memory", MEMORY, "--until", "Shell> ", "--serial", "stdio", "--host", "model"]
    return [sys.executable, "-m", "casemate", "boot", "--code", str(code), "--vars", str(variables), *options]


def qemu(code: Path, variables: Path) -> list[str]:
    """The command line of QEMU."""
    return [
        "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-m", MEMORY,
        "-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-serial", "stdio",
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
        "-drive", f"if=pflash,unit=1,format=raw,file={variables}",
    ]  # fmt: skip


def tables(runs: int) -> list[Table]:
    """One table; without QEMU it has no ratios."""
    pair = find_firmware(firmware_roots(os.environ))
    assert pair.vars_template is not None
    contenders = {"casemate": casemate}
    if shutil.which("qemu-system-x86_64"):
        contenders["QEMU TCG"] = qemu
    results: dict[str, list[Watched]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, command in contenders.items():
            with tempfile.TemporaryDirectory() as folder:
                variables = Path(shutil.copy(pair.vars_template, folder))
                print(f"bench: {name}", file=sys.stderr)
                results[name].append(watch(command(pair.code, variables), TEXTS, TIMEOUT_SECONDS))
    medians = {name: _medians(watched) for name, watched in results.items()}
    rows: list[tuple[str | float, ...]] = [(name, *values) for name, values in medians.items()]
    if other := medians.get("QEMU TCG"):
        ratios = (mine / its for mine, its in zip(medians["casemate"], other, strict=True))
        rows.append(("casemate / QEMU", *ratios))
    return [Table("Boot of stock OVMF, q35, one CPU", _COLUMNS, tuple(rows), _notes(pair.code, runs))]


def _medians(watched: list[Watched]) -> tuple[float, ...]:
    lines = [(one.first_byte, *one.seen, one.peak_memory) for one in watched]
    return tuple(statistics.median(column) for column in zip(*lines, strict=True))


def _notes(code: Path, runs: int) -> tuple[str, ...]:
    return (
        f"{code}, fresh variables each time, {MEMORY} of memory, medians of {runs} interleaved runs",
        "wall time from the start of the process, read through the same pipe reader; peak memory is ru_maxrss",
        "ESC ends the shell's countdown in QEMU (edk2 then waits 2 s for more of an escape sequence); casemate skips"
        " the guest's idle time, so that countdowns take none",
        "the CPUs differ: QEMU runs -cpu max, casemate its engine's default model",
        *(() if shutil.which("qemu-system-x86_64") else ("no qemu-system-x86_64 here, so no ratios",)),
    )
