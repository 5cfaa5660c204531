"""From the start of a program to the first line of user mode: a Linux kernel on casemate's model and on QEMU's TCG."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benches.console import watch
from benches.table import Cell, Table
from casemate.firmware.descriptors import firmware_roots
from casemate.testing.linux_init import initramfs, printing_init

MEMORY, APPEND = "256M", "console=ttyS0 panic=-1"
TIMEOUT_SECONDS = 120
LINE = b"hello from user mode"
_GUESTS = ("plain", "sev", "sev-es")
_VCPUS = (2, 4)
"""Of plain guests, beside those with one."""
_COLUMNS = (
    "kernel",
    "program",
    "Linux version, s",
    "user mode, s",
    "user mode / QEMU",
    "peak RSS, MiB",
    "PSS, MiB",
)


def commands(kernel: Path, initrd: Path) -> dict[str, list[str]]:
    """The same kernel, initrd and command line for each program."""
    files = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", APPEND]
    qemu = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-machine",
        "q35",
        "-m",
        MEMORY,
        "-nographic",
        "-no-reboot",
    ]
    casemate = [sys.executable, "-m", "casemate", "boot", "--host", "model", "--memory", MEMORY]
    casemate += [f"-{word}" if word.startswith("-") else word for word in files]
    found = {"QEMU TCG": [*qemu, *files]} if shutil.which("qemu-system-x86_64") else {}
    found |= {f"casemate, {guest}": [*casemate, "--guest", guest] for guest in _GUESTS}
    return found | {f"casemate, {count} vCPUs": [*casemate, "--cpus", f"{count}"] for count in _VCPUS}


def roots() -> list[Path]:
    """Where firmware is looked for, and where ./dev test puts what it fetches."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "casemate" / "firmware"
    return sorted({root.resolve() for root in (*firmware_roots(os.environ), *cache.glob("*/"))})


def find_kernels() -> list[Path]:
    """Debian's cloud kernels."""
    return [path for root in roots() for path in sorted(root.glob("boot/vmlinuz-*cloud-amd64"))]


def tables(runs: int) -> list[Table]:
    """One table, programs taking turns; none without a kernel."""
    kernels = find_kernels()
    if not kernels:
        print("bench: no kernel: ./dev test fetches some", file=sys.stderr)
        return []
    rows: list[tuple[Cell, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder, "initrd")
        initrd.write_bytes(initramfs(printing_init(LINE.decode())))
        for kernel in kernels:
            rows += _rows(kernel, initrd, runs)
    note = f"{MEMORY} of memory, {APPEND!r}, a first program that prints a line, medians of {runs} interleaved runs"
    return [Table("Linux by direct boot", _COLUMNS, tuple(rows), (note,))]


def _rows(kernel: Path, initrd: Path, runs: int) -> list[tuple[Cell, ...]]:
    programs = commands(kernel, initrd)
    seen: dict[str, list[tuple[float, ...]]] = {name: [] for name in programs}
    for _ in range(runs):
        for name, command in programs.items():
            print(f"bench: {kernel.name}, {name}", file=sys.stderr)
            watched = watch(command, (b"Linux version", LINE), TIMEOUT_SECONDS)
            seen[name].append((*watched.seen, watched.peak_memory, watched.pss))
    medians = {
        name: [statistics.median(column) for column in zip(*times, strict=True)]
        for name, times in seen.items()
    }
    reference = medians.get("QEMU TCG")
    return [
        (kernel.name, name, version, user, user / reference[1] if reference else None, memory, pss)
        for name, (version, user, memory, pss) in medians.items()
    ]
