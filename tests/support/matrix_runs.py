"""``casemate matrix`` in this process, matrices of guests that end at once, and what processes start."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from casemate.cli import main
from support.booting import TinyGuest


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
    with contextlib.suppress(OSError):  # it ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                yield child
                yield from children(child)


@pytest.fixture
def run_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RunMatrix:
    """``casemate matrix --json`` in this process."""

    def run(text: str, *words: str) -> Ran:
        (tmp_path / "matrix.toml").write_text(text)
        out = str(tmp_path / "results")
        capsys.readouterr()
        code = main(["matrix", str(tmp_path / "matrix.toml"), "--out", out, "--json", *words])
        captured = capsys.readouterr()
        return Ran(code, json.loads(captured.out or "{}"), captured.err)

    return run


@pytest.fixture
def two_guests(tiny_guest: TinyGuest) -> str:
    """A matrix of two guests on two kernels."""
    for number in (1, 2):
        tiny_guest(f"mov al, {number}; out 0xf4, al; hlt", name=f"guest{number}.bin")
    return """
        [settings]
        machine = "bare"
        memory = "4M"
        [axes]
        era = ["linux-6.1", "linux-6.18"]
        [axes.image]
        one = { bios = "guest1.bin" }
        two = { bios = "guest2.bin" }
        [[expect]]
        outcome = "exit-port"
    """
