"""Mutated reports and certificates are refused, in child processes with limits of CPU seconds and address space."""

from __future__ import annotations

from tools.mutated_reports import run_batches

MUTATIONS = 2000
"""``python -m tools.mutated_reports`` does 20,000."""


def test_no_mutation_is_believed_and_none_ends_in_a_traceback() -> None:
    faults = [fault for batch in run_batches(seed=22, count=MUTATIONS) for fault in batch]
    assert not faults
