"""Five thousand damaged stores: an answer in time, and a repair that keeps every variable that was whole."""

from __future__ import annotations

from time import perf_counter

from fuzz_store_check import damaged_stores

from casemate.advise.store_check import check_store, repair_store
from casemate.errors import ImageError

STORES = 5000
"""Each is made, checked, repaired and checked again: some ten seconds, for rare damages need many stores."""
SECONDS_EACH = 1.0


def test_damaged_stores_get_an_answer_and_a_repair_that_keeps_what_is_whole() -> None:
    refused = lost = 0
    for number, damaged in enumerate(damaged_stores(seed=4, count=STORES)):
        start = perf_counter()
        try:
            check = check_store(damaged.data, "VARS.fd")
        except ImageError:
            refused += 1
            lost += bool(damaged.whole)
            continue
        finally:
            assert perf_counter() - start < SECONDS_EACH, (number, damaged.how)
        missing = damaged.whole - set(check.variables)
        assert not missing, (number, damaged.how, sorted(missing)[:3], check.findings)
        repaired = repair_store(damaged.data, check)
        again = check_store(repaired, "VARS.fd")
        assert (again.variables, again.findings) == (check.variables, ()), (number, damaged.how)
    # What is left of a file can be too little to say what it was.
    assert refused < STORES // 20, refused
    assert lost < STORES // 100, lost
