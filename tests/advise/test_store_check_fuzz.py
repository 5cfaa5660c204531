"""Five thousand damaged stores: an answer in time, a repair that firmware likes, and no variable out of nothing."""

from __future__ import annotations

from time import perf_counter

from fuzz_store_check import damaged_stores

from casemate.advise.store_check import check_store, repair_store
from casemate.errors import ImageError

STORES = 5000
"""Each is made, checked, repaired and checked again: some ten seconds, for rare damages need many stores."""
SECONDS_EACH = 1.0


def test_damaged_stores_get_an_answer_and_a_repair_that_keeps_what_lies_before_the_damage() -> None:
    refused = salvaged = salvageable = 0
    for number, damaged in enumerate(damaged_stores(seed=4, count=STORES)):
        start = perf_counter()
        try:
            check = check_store(damaged.data, "VARS.fd")
        except ImageError:
            refused += 1
            continue
        finally:
            assert perf_counter() - start < SECONDS_EACH, (number, damaged.how)
        missing = set(damaged.before) - set(check.whole)
        assert not missing, (number, damaged.how, sorted(missing)[:3], check.findings)
        assert not {variable.key for variable in check.variables} - {v.key for v in check.whole}
        for salvage in (False, True):
            again = check_store(repair_store(damaged.data, check, salvage=salvage), "VARS.fd")
            assert again.findings == (), (number, damaged.how)
            assert again.variables == again.whole
            assert set(again.variables) >= set(check.whole)
        ordinary = {variable for variable in damaged.whole if variable.is_ordinary}
        salvageable += len(ordinary)
        salvaged += len(ordinary & set(again.variables))
    # What is left of a file can be too little to say what it was.
    assert refused < STORES // 20, refused
    assert salvaged > salvageable * 0.9, (salvaged, salvageable)
