"""Random ioctls of a VMM under ``casemate kvm``, from two threads (tests/userkvm/random_ioctls.c)."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from casemate import native
from fuzz.target import Target, count, quick

SOURCE = Path(__file__).parents[2] / "tests/userkvm/random_ioctls.c"
OF_A_THREAD, THREADS = 5000, 2
MOST_SECONDS = 120


def _compiler() -> str:
    return shutil.which("cc") or shutil.which("gcc") or ""


def missing() -> str:
    """What is not here."""
    if not _compiler():
        return "no C compiler is installed"
    return "" if native.KVM.exists() else "casemate's library for other VMMs was not built"


@functools.cache
def program() -> Path:
    """The compiled VMM."""
    made = Path(tempfile.mkdtemp(prefix="ioctls-"), "random_ioctls")
    subprocess.run([_compiler(), "-D_GNU_SOURCE", "-O1", "-pthread", "-o", made, SOURCE], check=True)
    return made


@quick(1)
@given(st.integers(0, (1 << 31) - 1))
def check(seed: int) -> None:
    """Each gives a result or an errno; the VMM survives, and casemate has nothing to say of itself."""
    command = [sys.executable, "-m", "casemate", "kvm", "--quiet"]
    line = [*command, "--", str(program()), str(OF_A_THREAD), str(seed)]
    ran = subprocess.run(
        line, capture_output=True, text=True, errors="replace", timeout=MOST_SECONDS, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "survived\n"), (ran.returncode, ran.stdout, ran.stderr[-1000:])
    assert "Traceback" not in ran.stderr, ran.stderr[-1000:]
    assert "internal error" not in ran.stderr, ran.stderr[-1000:]
    count(THREADS * OF_A_THREAD)


TARGET = Target(
    "ioctls", "ioctls of VMMs under casemate kvm", check, "ioctls", memory=64 << 30, missing=missing
)
