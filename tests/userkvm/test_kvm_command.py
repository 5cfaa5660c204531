"""Signals that come to ``casemate kvm`` before its command runs and after it ended (docs/guide/kvm.md)."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate import native
from casemate.cli import vmm_child
from casemate.cli.vmm_environment import prepare
from casemate.errors import UnsupportedError
from casemate.userkvm.options import Options

pytestmark = pytest.mark.skipif(not native.KVM.exists(), reason="the library for other VMMs was not built")

ENDING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.fixture
def untaken() -> Iterator[list[int]]:
    """Signals that came while nobody had taken them; at the end they are this fixture's again."""
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (*ENDING, signal.SIGUSR1)}
    try:
        yield came
        assert {signal.getsignal(number) for number in before} == {note}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def run(*command: str) -> vmm_child.Ran:
    """The command, in this process's care."""
    try:
        return vmm_child.run_vmm(list(command), Options("linux-6.18"), lambda _: None)
    except UnsupportedError as error:
        pytest.skip(str(error))


def before_it(number: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """The same work, after a signal to this process."""

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return work(*arguments)

    return signalled


@pytest.mark.parametrize("number", ENDING)
def test_signal_that_comes_before_the_command_runs_ends_it_all_and_leaves_nothing(
    number: int, untaken: list[int], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vmm_child, "prepare", before_it(number, prepare))
    with pytest.raises(SystemExit) as ended:
        run("sh", "-c", f"mkdir {temporary}/ran")
    assert ended.value.code == 128 + number
    assert not untaken
    assert not list(temporary.iterdir())


def test_summaries_are_asked_for_in_vain_before_the_command_runs(
    untaken: list[int], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vmm_child, "prepare", before_it(signal.SIGUSR1, prepare))
    assert run("sh", "-c", "exit 7").exit_code == 7
    assert not untaken


@pytest.mark.parametrize("number", [*ENDING, signal.SIGUSR1])
def test_signal_that_comes_after_the_command_ended_leaves_nothing(
    number: int, untaken: list[int], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup = before_it(number, tempfile.TemporaryDirectory.cleanup)
    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", cleanup)
    assert run("sh", "-c", "exit 7").exit_code == 7
    assert not untaken
    assert not list(temporary.iterdir())


def test_command_ignores_what_was_ignored_before_it(untaken: list[int], temporary: Path) -> None:
    noted = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("sh", "-c", "kill -HUP $$; exit 7").exit_code == 7
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, noted)
    assert run("sh", "-c", "kill -HUP $$; exit 7").exit_code == 128 + signal.SIGHUP
