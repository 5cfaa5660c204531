"""A short pass of every fuzzing target, always over the same inputs; ``./dev fuzz`` tries as many as one likes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from fuzz.target import NAMES, load


@pytest.mark.parametrize("name", NAMES)
def test_target_is_answered_as_it_must_be(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    target = load(name)
    if target.missing():
        pytest.skip(target.missing())
    target.check()
