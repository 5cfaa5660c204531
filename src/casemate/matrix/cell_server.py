"""A process that runs cells one after the other, each in a fork of it (fork(2)): ``python -m`` with this module.

Requests and answers are lines of JSON on standard input and output. Because casemate is imported once, a cell costs a
fork, and because it is a process, it can hang, crash or leak without harm to the next one. The server is a program of
its own, and not a thread's fork, so that it has no other threads, with which forking is unsafe.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import multiprocessing
import os
import resource
import select
import signal
import sys
import tempfile
import time
from typing import Any, BinaryIO

from casemate.host.model import hypervisor as _engine  # noqa: F401  (loaded once, for all cells)
from casemate.matrix.work import run_cell

_PR_SET_PDEATHSIG = 1
"""prctl(2)."""
_SAID_AT_MOST = 4096
_CONTEXT = multiprocessing.get_context("fork")


def serve() -> None:
    """Answer requests until nobody is there to ask."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.collect()
    gc.freeze()
    while line := requests.readline():
        request = json.loads(line)
        answer = _in_a_fork(request["settings"], request["seconds"])
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _in_a_fork(settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The answer of ``run_cell``, or ``{"died": ...}``, or a timeout for a cell that did not end by itself."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as said:
        process = _CONTEXT.Process(target=_be_the_cell, args=(settings, reading, writing, said))
        process.start()
        child = process.pid
        assert child is not None
        with contextlib.suppress(OSError):  # the child does it, too: whoever is first
            os.setpgid(child, child)
        os.close(writing)
        try:
            data = _read(reading, time.monotonic() + seconds)
        finally:
            os.close(reading)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # and what it started
            process.join()
        if data is None:
            detail = f"did not end by itself within {seconds:g} s, and was killed"
            result = {"outcome": "timeout", "detail": detail, "exit_code": 7, "seconds": seconds}
            return {"result": result, "artefacts": {}}
        try:
            answer: dict[str, Any] = json.loads(data)
            return answer
        except ValueError:
            said.seek(0)
            text = said.read().decode("utf-8", "replace")[-_SAID_AT_MOST:]
            return {"died": f"exit code {process.exitcode}", "said": text}


def _be_the_cell(settings: dict[str, Any], reading: int, writing: int, said: BinaryIO) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    os.close(reading)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    faulthandler.enable(2)
    answer = json.dumps(run_cell(settings)).encode()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(answer)


def _read(fd: int, deadline: float) -> bytes | None:
    """All that the cell writes; None once its time is over. Raises EOFError if nobody waits for it any more."""
    parts: list[bytes] = []
    waiting = [fd, 0]
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select(waiting, [], [], left)
        if fd in ready:
            part = os.read(fd, 1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
        elif ready:  # nobody asks again before the answer: standard input was closed
            raise EOFError
    return None


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError):
        serve()
