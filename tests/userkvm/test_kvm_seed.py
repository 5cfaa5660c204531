"""The mail, shown: QEMU's refusal, the ways out, and its design in a small VMM (docs/tutorial-seed.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from casemate import native
from tools.page_table import PageTable
from tools.rooted_qemu import CHECKOUT, CannotError, Outcome, require
from tools.seed_table import (
    BOOTED,
    CELLS,
    PLACE,
    REFUSAL,
    VERSIONS,
    VMM_PLACE,
    Cell,
    Seen,
    Version,
    faults_of,
    judge,
    run,
)

REFUSED, WORKS = CELLS[:2]
"""These two say most; ``python -m tools.seed_table`` runs every cell."""
HASHES = next(cell for cell in CELLS if cell.has_hashes)
REFUSAL_SEEN = Outcome(1, f"{REFUSAL}\n", "")
BOOT_SEEN = Outcome(
    0, "", f'{BOOTED}0001 "EFI Internal Shell"', {"type": "KVM_X86_SEV_ES_VM", "digest": "00"}
)


@pytest.mark.boot
@pytest.mark.parametrize("cell", [REFUSED, WORKS, HASHES], ids=lambda cell: cell.name)
def test_the_unmodified_qemu_does_with_each_cell_what_is_expected(cell: Cell) -> None:
    try:
        outcome = run(cell)
    except CannotError as error:
        pytest.skip(str(error))
    assert not faults_of(outcome, cell), outcome.errors


@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler is installed")
@pytest.mark.skipif(not native.KVM.exists(), reason="casemate's library for other VMMs was not built")
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.version + version.firmware)
def test_each_regression_of_the_mail_is_found_and_its_rule_named(version: Version) -> None:
    assert judge(version).faults(version) == []


def test_a_refusal_in_other_words_or_with_another_exit_code_is_noticed() -> None:
    assert not faults_of(REFUSAL_SEEN, REFUSED)
    in_passing = replace(REFUSAL_SEEN, errors=f"warning: {REFUSAL}\n")
    assert faults_of(in_passing, REFUSED) == [f"no line {REFUSAL!r}"]
    assert faults_of(replace(REFUSAL_SEEN, code=137), REFUSED) == ["exit code 137, not 1"]
    assert "the guest ran" in faults_of(BOOT_SEEN, REFUSED)


def test_a_boot_of_another_type_or_without_a_message_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cell, "predicted", lambda _: "00")
    assert not faults_of(BOOT_SEEN, WORKS)
    other = {"type": "KVM_X86_DEFAULT_VM", "digest": "00"}
    assert faults_of(replace(BOOT_SEEN, vm=other), WORKS) == ["VM type KVM_X86_DEFAULT_VM"]
    assert faults_of(replace(BOOT_SEEN, serial=""), WORKS) == [f"no {BOOTED!r} on the serial line"]


def test_a_digest_that_was_not_predicted_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cell, "predicted", lambda _: "01")
    assert faults_of(BOOT_SEEN, WORKS) == ["digest 00, not 01"]


def test_a_version_that_breaks_another_rule_or_ends_otherwise_is_noticed() -> None:
    version = VERSIONS[1]
    seen = Seen(1, "KVM_RUN: Bad address, exit reason 0", version.broken)
    assert seen.faults(version) == []
    assert replace(seen, broken=frozenset()).faults(version) == ["no rule broken"]
    assert replace(seen, code=0).faults(version) == ["exit code 0"]
    assert "vmm said 'exit reason 5'" in replace(seen, said="exit reason 5").faults(version)[0]


def test_without_the_root_the_tool_says_why_and_exits_with_5(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is installed")
    done = subprocess.run(
        [sys.executable, "-m", "tools.seed_table"],
        cwd=CHECKOUT, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert "seed_table: error: " in done.stderr
    assert "root" in done.stderr


@pytest.mark.parametrize(("place", "rows"), [(PLACE, CELLS), (VMM_PLACE, VERSIONS)])
def test_the_page_has_a_row_for_each_cell(place: PageTable, rows: tuple[object, ...]) -> None:
    assert place.shown().count("\n") == len(rows) + 2


@pytest.mark.boot
def test_the_example_shows_the_refusal_and_each_way_out() -> None:
    try:
        packages = require()
    except CannotError as error:
        pytest.skip(str(error))
    line = [sys.executable, "-m", "tools.roots", "run"]
    for shown, place in {
        CHECKOUT / "src": "src",
        packages: "packages",
        CHECKOUT / "examples": "examples",
    }.items():
        line += ["--bind", f"{shown}:/casemate/{place}"]
    line += [
        "trixie-full",
        "--",
        "env",
        "PYTHONPATH=/casemate/src:/casemate/packages",
        "PYTHONDONTWRITEBYTECODE=1",
    ]
    line += ["CASEMATE=python3 -m casemate", "sh", "/casemate/examples/seed/seed.sh"]
    ran = subprocess.run(line, cwd=CHECKOUT, capture_output=True, text=True, timeout=240, check=False)
    assert ran.stdout.splitlines()[:4] == [
        f"Linux 6.18, new VM type, flash: exit code 1: {REFUSAL}",
        "Linux 6.10, new VM type, flash: boots",
        "Linux 6.18, old VM type, flash: boots",
        "Linux 6.18, new VM type, -bios: boots",
    ], ran.stdout + ran.stderr
