"""The initrd whose init runs threads on all processors and checks their sums (threads.c)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from casemate.testing.linux_init import initramfs


class CannotBuildError(Exception):
    """This host has no compiler for C, or no static library of C."""


def threaded_initrd(folder: Path) -> bytes:
    """Compiled in ``folder``. Raises CannotBuildError."""
    program = folder / "init"
    source = Path(__file__).with_suffix(".c")
    command: list[str | Path] = ["gcc", "-O1", "-static", "-pthread", "-o", program, source]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise CannotBuildError("no gcc to build the threaded program with") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1]
        raise CannotBuildError(f"gcc builds no static program here: {reason}") from None
    return initramfs(program.read_bytes())
