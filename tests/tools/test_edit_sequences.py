"""Random edits of stores, and virt-fw-vars, a program of others, as the judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.edit_sequences import TOOL, run_sequences

SEQUENCES = 250
"""``python -m tools.edit_sequences`` does 1,000; each starts virt-fw-vars."""


@pytest.mark.timeout(900)
@pytest.mark.skipif(not TOOL.exists(), reason="virt-fw-vars is not installed: pip install virt-firmware")
def test_edits_leave_what_virt_firmware_reads_and_what_it_writes_is_read(tmp_path: Path) -> None:
    outcomes = list(run_sequences(22, SEQUENCES, tmp_path))
    assert not [outcome for outcome in outcomes if outcome.difference]
    assert {edit for outcome in outcomes for edit in outcome.edits} >= {
        "set",
        "delete",
        "import",
        "convert",
        "age",
    }
