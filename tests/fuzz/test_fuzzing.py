"""The fuzzer itself: what counts as a finding, that it can be tried again, and the command."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import children, runs
from fuzz.target import NAMES, Target, quick

ROOT = Path(__file__).parents[2]


def run_command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "fuzz", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


def target(judge: Callable[[int], object]) -> Target:
    """One that hands single numbers to ``judge``."""

    @quick(10)
    @given(st.integers(0, 3))
    def check(number: int) -> None:
        judge(number)

    return Target("made", "for a test", check)


def spin(number: int) -> None:
    while number == 2:
        pass


def tried(judge: Callable[[int], object], folder: Path) -> runs.Run:
    return runs.by_seed(target(judge), 1, runs.Limits(inputs=20), folder)


def abort_at_two(number: int) -> None:
    if number == 2:
        faulthandler.disable()  # it would write into the tests' own output
        os.abort()


def refuse_two(number: int) -> None:
    if number == 2:
        raise KeyError(number)


@pytest.mark.parametrize(
    ("judge", "how"),
    [
        (refuse_two, "KeyError: 2"),
        (lambda number: bytearray(1 << 40 if number == 2 else 1), "MemoryError"),
        (abort_at_two, "the process ended by SIGABRT"),
        (lambda number: number == 2 and ctypes.CDLL(None)._exit(7), "the process ended with exit code 7"),
    ],
)
def test_finding_is_kept_and_fails_again(judge: Callable[[int], object], how: str, tmp_path: Path) -> None:
    (finding,) = tried(judge, tmp_path / "found").findings
    assert how in finding.how
    (fault,) = runs.one_input(target(judge), Path(finding.file))
    assert how in fault.how


def test_input_that_takes_too_long_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "INPUT_SECONDS", 0.2)
    (finding,) = tried(spin, tmp_path).findings
    assert "seconds of CPU" in finding.how


def test_run_without_findings_counts_its_inputs_and_writes_nothing(tmp_path: Path) -> None:
    run = tried(lambda number: number, tmp_path / "found")
    assert run.inputs == 20
    assert run.findings == []
    assert not (tmp_path / "found").exists()


def test_run_is_repeated_by_its_seed_alone() -> None:
    assert runs.input_of(1, 2) == runs.input_of(1, 2) != runs.input_of(2, 2)


def test_scratch_files_are_gone_afterwards() -> None:
    with runs.scratch() as folder:
        made = Path(tempfile.mkdtemp())
        assert made.parent == folder
    assert not folder.exists()


def test_targets_are_listed() -> None:
    ran = run_command("--json")
    assert ran.returncode == 0
    assert tuple(row["target"] for row in json.loads(ran.stdout)) == NAMES


def test_command_says_what_it_tried_as_json(tmp_path: Path) -> None:
    ran = run_command("flash", "--inputs", "5", "--seed", "3", "--json", "--findings", tmp_path)
    assert ran.returncode == 0, ran.stderr
    (run,) = json.loads(ran.stdout)
    assert (run["target"], run["seed"], run["findings"]) == ("flash", 3, [])
    assert run["units"] >= 40 * run["inputs"] == 200


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("nonsense",), "no target 'nonsense'"),
        (("--input", "x"), "--input is of one target"),
        (("plans", "--inputs", "1", "--engine", "atheris"), "give --seconds"),
        (("plans", "--input", "/nonexistent/x"), "No such file"),
    ],
)
def test_usage_that_is_wrong_is_exit_code_2(words: tuple[str, ...], cause: str) -> None:
    ran = run_command(*words)
    assert ran.returncode == 2
    assert cause in ran.stderr


def test_atheris_is_guided_through_a_target(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed (pip install -e '.[fuzz]')")
    ran = run_command("plans", "--engine", "atheris", "--seconds", "3", "--json", "--findings", tmp_path)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert json.loads(ran.stdout)[0]["inputs"] > 0
