"""Runs inputs in forked children with limits of CPU seconds and address space (setrlimit(2), getitimer(2))."""

from __future__ import annotations

import os
import resource
import signal
from ast import literal_eval
from collections.abc import Callable, Iterable
from typing import NamedTuple

CPU_SECONDS = 60
"""What a child may use."""
INPUT_SECONDS = 10
"""Of the processor, for one input."""
WAITING_SECONDS = 150
"""Of the clock, for one input."""


class Fault(NamedTuple):
    """An input that was not answered as it must be: its number, and what happened."""

    number: int
    how: str


def run_in_child(run: Callable[[], Iterable[Fault]], at: Callable[[], int], memory: int) -> list[Fault]:
    """The faults that ``run`` finds in ``memory`` bytes; a bad end of the child is one, of input ``at()``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            with os.fdopen(writing, "w") as pipe:
                pipe.writelines(f"{number}\t{how!a}\n" for number, how in run())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        faults = [_fault(line) for line in pipe]
    _, status = os.waitpid(child, 0)
    if status:
        faults.append(Fault(at(), _ending(status)))
    return faults


def begin_input() -> None:
    """The child ends unless this, or ``end_inputs``, comes again in time."""
    signal.setitimer(signal.ITIMER_PROF, INPUT_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING_SECONDS)


def end_inputs() -> None:
    """No input is being tried."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _fault(line: str) -> Fault:
    number, how = line.rstrip("\n").split("\t", 1)
    return Fault(int(number), literal_eval(how))


def _ending(status: int) -> str:
    if not os.WIFSIGNALED(status):
        return f"the process ended with exit code {os.waitstatus_to_exitcode(status)}"
    ended_by = os.WTERMSIG(status)
    if ended_by in (signal.SIGPROF, signal.SIGXCPU):
        return f"it took more than {INPUT_SECONDS} seconds of CPU"
    if ended_by == signal.SIGALRM:
        return f"it waited for more than {WAITING_SECONDS} seconds"
    return f"the process ended by {signal.Signals(ended_by).name}"
