"""Mutated guests are answered, in child processes with limits of CPU seconds and address space."""

from __future__ import annotations

from tools.mutated_lines import run_batches

MUTATIONS = 1000
"""``python -m tools.mutated_lines`` does 20,000."""


def test_no_mutation_ends_in_a_traceback_or_reaches_the_terminal() -> None:
    faults = [fault for batch in run_batches(seed=7, count=MUTATIONS) for fault in batch]
    assert not faults
