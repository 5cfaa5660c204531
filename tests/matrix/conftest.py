"""Matrices of guests that end at once, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.booting import TinyGuest
from support.matrix_runs import Ran, RunMatrix

from casemate.cli import main


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
