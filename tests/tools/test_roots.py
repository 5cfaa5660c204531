"""The task that makes root folders of other suites: its list, and what it refuses."""

import subprocess
import sys

from tools.roots.recipes import RECIPES


def roots(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.roots", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_every_root_is_listed_with_its_place_or_a_dash() -> None:
    answer = roots("list")
    assert (answer.returncode, answer.stderr) == (0, "")
    lines = [line.split(maxsplit=2) for line in answer.stdout.splitlines()]
    assert [name for name, _, _ in lines] == list(RECIPES)
    assert all(place == "-" or place.startswith("/") for _, place, _ in lines)


def test_what_cannot_be_run_is_said_in_one_line() -> None:
    for words in (["run", "nowhere", "--", "true"], ["run", "disk", "--", "true"], ["run", "trixie-bare"]):
        answer = roots(*words)
        assert answer.returncode == 125
        assert answer.stdout == ""
        assert answer.stderr.startswith("roots: error: ")
        assert answer.stderr.count("\n") == 1
