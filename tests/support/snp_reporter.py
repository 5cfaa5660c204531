"""A first program that prints what /dev/sev-guest returns, and the driver's modules (Linux coco/sev-guest.rst)."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

MODULES = ("configfs", "gf128mul", "ghash-generic", "crypto_null", "gcm", "tsm", "sev-guest")
"""The driver of /dev/sev-guest and what it needs, in the order of loading."""
SOURCE = Path(__file__).parents[1] / "boot" / "sev_report.c"


def modules(kernel: Path) -> dict[str, bytes]:
    """The driver's modules of this kernel, as files of an archive."""
    files = {}
    for number, name in enumerate(MODULES):
        found = sorted(kernel.parent.parent.glob(f"**/modules/**/{name}.ko.xz"))
        if not found:
            pytest.skip(f"no module {name} beside {kernel.name}: unpack its package whole")
        files[f"modules/{number}.ko"] = lzma.decompress(found[0].read_bytes())
    return files


def build_reporter(folder: Path) -> bytes:
    """The program, compiled in ``folder``."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the guest's program with")
    program = folder / "init"
    done = subprocess.run(
        ["gcc", "-O1", "-static", "-o", program, SOURCE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"gcc builds no such program here: {done.stderr.strip().splitlines()[-1]}")
    return program.read_bytes()
