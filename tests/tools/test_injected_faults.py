"""Each system call of a boot fails once, on each file and in each phase; the task runs all of them (strace(1))."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from casemate.testing.images import variable_store
from tools.injected_faults import PROGRAMS, find_cases, run, store_fault

CASES = 40


def test_whatever_fails_the_store_is_whole_and_the_end_has_a_reason() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    try:
        cases = find_cases(CASES)
    except RuntimeError as error:
        if "PTRACE" in str(error):
            pytest.skip(f"nothing can be traced here: {error}")
        raise
    assert len(cases) == CASES
    assert {case.phase for case in cases} >= {"before", "run"}
    assert [(case, fault) for case in cases if (fault := run(case))] == []


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (bytes(range(1, PROGRAMS + 1)), None),
        (b"\1\2\3" + b"\xff" * (PROGRAMS - 3), None),
        (b"\1\3\2" + b"\xff" * (PROGRAMS - 3), "another order"),
        (b"\1\xff\2" + b"\xff" * (PROGRAMS - 3), "another order"),
    ],
    ids=["all", "first", "swapped", "gap"],
)
def test_store_has_the_first_programs_or_is_told_to_be_wrong(
    tmp_path: Path, made: bytes, fault: str | None
) -> None:
    (tmp_path / "vars.fd").write_bytes(variable_store(1 << 17)[:-PROGRAMS] + made)
    found = store_fault(tmp_path, None)
    assert found is None if fault is None else fault in (found or "")
