"""``casemate matrix`` in this process, which the fixtures of tests/matrix/conftest.py give, and what it starts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Ran(NamedTuple):
    """What ``casemate matrix`` came to."""

    code: int
    document: dict[str, Any]
    err: str

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """Its cells by their names."""
        return {cell["name"]: cell for cell in self.document["cells"]}


class RunMatrix(Protocol):
    """The fixture ``run_matrix``."""

    def __call__(self, text: str, *words: str) -> Ran:
        """Write a matrix and run it, with its results in a folder that stays the same within the test."""


def children(pid: int) -> Iterator[int]:
    """Processes that any thread of a process started, and theirs."""
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it ended
            for child in map(int, thread.read_text().split()):
                yield child
                yield from children(child)
