"""Runs a program that prints a guest's console, and notes when which text came and how much memory it took."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

COUNTDOWN = b" seconds to skip "
ESCAPE = b"\x1b"


class RunError(Exception):
    """The program ended, or its time was over, before it printed everything."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Seconds from the start of the process, and its peak memory in MiB."""

    first_byte: float
    seen: tuple[float, ...]
    """For each text that was waited for."""
    peak_memory: float
    pss: float
    """MiB at the end, pages that are mapped twice counted once."""
    cpu: float
    """Seconds of all its threads."""


def watch(command: Sequence[str], texts: Sequence[bytes], timeout: float) -> Watched:
    """Run ``command`` until its standard output had ``texts``, in this order. Raises RunError.

    ESC is typed at every step of a countdown. The process is then ended by SIGTERM, if it does not end by itself.
    """
    with tempfile.TemporaryFile() as errors:
        start = perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
        )
        try:
            first_byte, seen = _read(process, texts, start + timeout)
        except RunError as error:
            errors.seek(0)
            process.kill()
            process.wait()
            raise RunError(
                f"{command[0]}: {error}; {errors.read()[-500:].decode(errors='replace')}"
            ) from None
        pss = _proportional(process.pid)
        process.terminate()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
    cpu = usage.ru_utime + usage.ru_stime
    return Watched(first_byte - start, tuple(at - start for at in seen), usage.ru_maxrss / 1024, pss, cpu)


def _proportional(pid: int) -> float:
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) / 1024 for line in rollup if line.startswith("Pss:"))


def _read(process: subprocess.Popen[bytes], texts: Sequence[bytes], end: float) -> tuple[float, list[float]]:
    assert process.stdin is not None
    assert process.stdout is not None
    left, printed, first_byte, countdowns = list(texts), b"", 0.0, 0
    seen: list[float] = []
    while left:
        if not select.select([process.stdout], [], [], max(0.0, end - perf_counter()))[0]:
            raise RunError(f"no {left[0].decode()!r} in time")
        data = os.read(process.stdout.fileno(), 1 << 16)
        now = perf_counter()
        if not data:
            raise RunError(f"ended before {left[0].decode()!r}")
        first_byte = first_byte or now
        printed += data
        if printed.count(COUNTDOWN) > countdowns:
            countdowns += 1
            os.write(process.stdin.fileno(), ESCAPE)
        while left and left[0] in printed:
            printed = printed[printed.index(left[0]) :]
            left.pop(0)
            seen.append(now)
    return first_byte, seen
