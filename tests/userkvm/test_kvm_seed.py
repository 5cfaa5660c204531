"""What Debian 13's QEMU does with flash of SEV-ES guests, cell by cell (docs/tutorial-seed.md, tools/seed_table.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tools.seed_table import (
    BEGIN,
    BOOTED,
    CELLS,
    CHECKOUT,
    END,
    PAGE,
    REFUSAL,
    CannotError,
    Cell,
    Outcome,
    require,
    run,
    with_table,
)  # fmt: skip

REFUSED, WORKS = CELLS[:2]
"""These two say most; ``python -m tools.seed_table`` runs every cell."""
REFUSAL_SEEN = Outcome(1, f"{REFUSAL}\n", "", {})
BOOT_SEEN = Outcome(
    0, "", f'{BOOTED}0001 "EFI Internal Shell"', {"type": "KVM_X86_SEV_ES_VM", "digest": "00"}
)


@pytest.mark.boot
@pytest.mark.parametrize("cell", [REFUSED, WORKS], ids=lambda cell: cell.era)
def test_the_unmodified_qemu_refuses_flash_under_the_newer_kernel_alone(cell: Cell) -> None:
    try:
        require()
    except CannotError as error:
        pytest.skip(str(error))
    outcome = run(cell)
    assert not outcome.faults(cell), outcome.errors


def test_a_refusal_in_other_words_or_with_another_exit_code_is_noticed() -> None:
    assert not REFUSAL_SEEN.faults(REFUSED)
    assert replace(REFUSAL_SEEN, errors=f"warning: {REFUSAL}\n").faults(REFUSED) == [f"no line {REFUSAL!r}"]
    assert replace(REFUSAL_SEEN, code=137).faults(REFUSED) == ["exit code 137, not 1"]
    assert "the guest ran" in BOOT_SEEN.faults(REFUSED)


def test_a_boot_of_another_type_or_without_a_message_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cell, "predicted", lambda _: "00")
    assert not BOOT_SEEN.faults(WORKS)
    other = {"type": "KVM_X86_DEFAULT_VM", "digest": "00"}
    assert replace(BOOT_SEEN, vm=other).faults(WORKS) == ["VM type KVM_X86_DEFAULT_VM"]
    assert replace(BOOT_SEEN, serial="").faults(WORKS) == [f"no {BOOTED!r} on the serial line"]


def test_a_digest_that_was_not_predicted_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cell, "predicted", lambda _: "01")
    assert BOOT_SEEN.faults(WORKS) == ["digest 00, not 01"]


def test_without_the_root_the_tool_says_why_and_exits_with_5(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.seed_table"],
        cwd=CHECKOUT, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert done.stderr.startswith("seed_table: error: ")
    assert "root" in done.stderr


def test_the_page_has_a_row_for_each_cell_and_is_otherwise_left_alone() -> None:
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    shown, _, after = rest.partition(END)
    assert before
    assert after
    assert shown.strip().count("\n") == len(CELLS) + 1
    assert with_table(page, shown.strip() + "\n") == page
