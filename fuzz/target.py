"""A fuzzing target: a Hypothesis test of one kind of input, which other engines run on bytes (fuzz_one_input)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from mmap import mmap
from typing import Any

from hypothesis import HealthCheck, settings

from casemate.errors import CasemateError, InternalError

NAMES = (
    "instructions",
    "ghcb",
    "snp",
    "devices",
    "flash",
    "images",
    "stores",
    "kernels",
    "reports",
    "launches",
    "plans",
    "descriptors",
    "guests",
    "qmp",
    "ioctls",
)
"""Modules of ``fuzz.targets``."""
LONGEST_INPUT = 1 << 14
"""Bytes that an engine makes of one input; what a test does not read of them is of no account."""
_SLOT = struct.Struct("<3Q")


@dataclass(frozen=True, slots=True)
class Target:
    """``check`` is decorated by ``@given`` and raises for what must not be; ``unit`` is what ``tally`` counts."""

    name: str
    about: str
    check: Callable[[], None]
    unit: str = "inputs"
    memory: int = 2 << 30
    """Bytes of address space that a process may have for it."""
    missing: Callable[[], str] = lambda: ""
    """Why it cannot run here; empty if it can."""

    @property
    def on_bytes(self) -> Callable[[bytes], bytes | None]:
        """``check`` of an input made of these bytes; None of bytes that are not enough for one."""
        found: Any = self.check
        taker: Callable[[bytes], bytes | None] = found.hypothesis.fuzz_one_input
        return taker


@dataclass(slots=True)
class Tally:
    """How far a run is, in memory that its children share: what they counted survives their end.

    ``number`` is the input that is being tried, ``inputs`` those that were whole, ``units`` what they held.
    """

    memory: mmap

    def read(self) -> tuple[int, int, int]:
        """``number``, ``inputs`` and ``units``."""
        number, inputs, units = _SLOT.unpack_from(self.memory)
        return number, inputs, units

    def add(self, *, number: int | None = None, inputs: int = 0, units: int = 0) -> None:
        """Count, and say which input comes now."""
        before, old_inputs, old_units = self.read()
        _SLOT.pack_into(
            self.memory, 0, before if number is None else number, old_inputs + inputs, old_units + units
        )


TALLY = Tally(mmap(-1, _SLOT.size))
"""Of this process and its children."""


def count(units: int) -> None:
    """Targets call it with how many instructions, requests and so on an input held."""
    TALLY.add(units=units)


def quick(examples: int) -> settings:
    """Decorates a ``check``: how many inputs of a fixed seed the tests try."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def refusals() -> Iterator[None]:
    """What is done inside may refuse its input; an InternalError is casemate's own fault, and goes on."""
    try:
        yield
    except InternalError:
        raise
    except CasemateError:
        pass


def load(name: str) -> Target:
    """The target of this name, one of ``NAMES``."""
    found: Target = import_module(f"fuzz.targets.{name}").TARGET
    return found
