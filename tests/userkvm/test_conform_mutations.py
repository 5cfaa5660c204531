"""Mistakes in casemate's own VMM, whose rules ``casemate conform --self`` names (tools/conform_mutations.py)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools.conform_mutations import EXPECTATIONS, Expectation, find_mutation, judge
from tools.mutations import ROOT, apply
from tools.rooted_qemu import CannotError


@pytest.mark.boot
@pytest.mark.parametrize("number", [1, 7], ids=lambda number: EXPECTATIONS[number].guest)
def test_mistake_is_found_and_its_rule_named(tmp_path: Path, number: int) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    try:
        unnamed = judge([EXPECTATIONS[number]], tmp_path)
    except CannotError as error:
        pytest.skip(str(error))
    assert not unnamed


@pytest.mark.parametrize("each", EXPECTATIONS, ids=lambda each: f"{each.mutation}, {each.guest}")
def test_every_mistake_can_still_be_made(tmp_path: Path, each: Expectation) -> None:
    mutation = find_mutation(each.mutation)
    copy = tmp_path / mutation.file
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / mutation.file, copy)
    assert apply(mutation, tmp_path) != copy.read_text("utf-8")
