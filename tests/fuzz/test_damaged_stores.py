"""Four hundred damaged stores: few are refused, and a salvage keeps nearly all that lies outside of the damage."""

from __future__ import annotations

from fuzz.targets.stores import damaged_store, judge_store

STORES = 400
"""Rare damages need many stores."""


def test_damaged_stores_keep_nearly_all_variables() -> None:
    judged = [judge_store(damaged_store(seed)) for seed in range(STORES)]
    # What is left of a file can be too little to say what it was.
    assert judged.count(None) < STORES // 20
    kept = [each for each in judged if each is not None]
    assert sum(salvaged for _, salvaged in kept) > 0.9 * sum(whole for whole, _ in kept)
