"""The diff command: two traces in, the difference and an exit code out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate.cli.parser import load_command
from casemate.errors import CasemateError
from casemate.testing.images import ImageBuilder

if TYPE_CHECKING:
    from casemate.cli.parser import Command


def run(command: Command, line: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(line.split()))


MEASURE, DIFF = load_command("measure"), load_command("diff")


@pytest.fixture(autouse=True)
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.fd").write_bytes(ImageBuilder().reset_block(0x80B004).build())
    for name, options in (("a", "--init init2"), ("b", "--init legacy")):
        run(MEASURE, f"--mode seves --ovmf x.fd --vcpus 2 --vcpu-type EPYC --json {options}")
        (tmp_path / f"{name}.json").write_text(capsys.readouterr().out)


def test_cause_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(DIFF, "a.json b.json") == 1
    assert "FPU state" in capsys.readouterr().out
    assert run(DIFF, "--json a.json b.json") == 1
    assert json.loads(capsys.readouterr().out)["position"] == 1


def test_same_trace_gives_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(DIFF, "a.json a.json") == 0
    assert "same" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["a.json none.json", "a.json x.fd"])
def test_file_that_is_no_launch_is_refused(line: str) -> None:
    with pytest.raises(CasemateError) as caught:
        run(DIFF, line)
    assert caught.value.exit_code == 4
