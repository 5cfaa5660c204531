"""The lint command: lines and files in, findings and exit codes out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from casemate.cli import lint
from casemate.errors import CasemateError
from casemate.testing.images import ImageBuilder, variable_store

CODE_SIZE = 0x200000 - 0x20000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.fd").write_bytes(ImageBuilder(CODE_SIZE, volume=True).build())
    (tmp_path / "v.fd").write_bytes(variable_store(0x20000))
    return tmp_path


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    lint.add_arguments(parser)
    return lint.run(parser.parse_args(list(words)))


def test_good_pair_has_no_findings(capsys: pytest.CaptureFixture[str]) -> None:
    drive = "if=pflash,format=raw"
    words = ("-drive", f"{drive},readonly=on,file=c.fd", "-drive", f"{drive},file=v.fd")
    assert run("--", "qemu-system-x86_64", *words) == 0
    out = capsys.readouterr().out
    assert out == "0 errors, 0 warnings, 0 notes, for linux-6.18 and any QEMU\nexamined: QEMU command line\n"


def test_error_gives_exit_code_1_with_option_cause_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--", "qemu-system-x86_64", "-drive", "if=pflash,unit=1,format=raw,file=none.fd") == 1
    out = capsys.readouterr().out
    assert out.startswith("error: pflash-gap: ")
    assert "option: -drive if=pflash,unit=1" in out
    assert "remedy: " in out
    assert "'none.fd'" in out


def test_script_and_domain_are_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "start.sh").write_text("#!/bin/sh\nexec qemu-system-x86_64 \\\n  -bios c.fd # firmware\n")
    assert run("--json", "start.sh") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["unread"] == []
    (folder / "d.xml").write_text("<domain><os><loader type='rom'>OVMF_CODE.fd</loader></os></domain>")
    assert run("--era", "linux-6.6", "d.xml") == 0
    out = capsys.readouterr().out
    assert "bios-code" in out
    assert "linux-6.6" in out


def test_file_with_nothing_in_it_is_not_called_good(folder: Path) -> None:
    (folder / "empty.sh").write_text("#!/bin/sh\n")
    with pytest.raises(CasemateError, match="nothing is in it"):
        run("empty.sh")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.xml"], "cannot be read"),
        (["c.fd"], "cannot be read"),
        (["--era", "linux-2.4", "--", "qemu", "-S"], "no kernel era"),
        (["--", "qemu", "-drive"], "needs a value"),
    ],
)
def test_what_cannot_be_read_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(CasemateError, match=message) as caught:
        run(*words)
    assert caught.value.exit_code == 4
