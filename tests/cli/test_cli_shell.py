"""Completion, run by bash itself, and manual pages, read by groff: both know every command and option."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from casemate.cli import main
from casemate.cli.parser import COMMANDS, make_parser
from casemate.cli.parser_tree import walk_commands

BASH, GROFF = shutil.which("bash"), shutil.which("groff")


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", "bash"]) == 0
    return capsys.readouterr().out


def complete(script: str, line: str, folder: Path) -> set[str]:
    """What bash offers behind ``line``."""
    if BASH is None:
        pytest.skip("bash is not installed")
    words = line.split(" ")
    arguments = " ".join(f"'{word}'" for word in words)
    call = f"COMP_WORDS=({arguments}); COMP_CWORD={len(words) - 1}; _casemate"
    program = f"{script}\n{call}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run([BASH, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("casemate bo", {"boot"}),
        ("casemate vars s", {"set"}),
        ("casemate boot --vars-s", {"--vars-sync"}),
        ("casemate boot --json --vars-sync ", {"always", "idle", "exit"}),
        ("casemate vars set x.fd --in", {"--in-place"}),
        ("casemate vars fsck ", {"x.fd", "y.fd"}),
        ("casemate boot --code y", {"y.fd"}),
        ("casemate completion z", set()),
    ],
)
def test_completion_offers(line: str, expected: set[str], script: str, tmp_path: Path) -> None:
    for name in ("x.fd", "y.fd"):
        (tmp_path / name).touch()
    assert complete(script, line, tmp_path) == expected


def test_completion_offers_every_command(script: str, tmp_path: Path) -> None:
    assert complete(script, "casemate ", tmp_path) >= COMMANDS.keys()


def test_every_command_has_a_page_with_all_its_options(tmp_path: Path) -> None:
    assert main(["manual", str(tmp_path / "man1")]) == 0
    pages = list(walk_commands(make_parser()))
    assert len(pages) > len(COMMANDS)
    for page in pages:
        text = (tmp_path / "man1" / f"{'-'.join(page.words)}.1").read_text()
        for action in page.options:
            assert action.option_strings[-1].replace("-", "\\-") in text
        if GROFF is not None:
            done = subprocess.run(
                [GROFF, "-man", "-Tutf8", "-ww"], input=text, capture_output=True, text=True, check=True
            )
            assert done.stderr == ""
            assert "%(default" not in done.stdout


def test_manual_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["manual", str(tmp_path / "file")]) == 5
    assert "choose a folder you may write to" in capsys.readouterr().err
