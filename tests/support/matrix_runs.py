"""``casemate matrix`` in this process; the fixtures of tests/matrix/conftest.py give it."""

from __future__ import annotations

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
