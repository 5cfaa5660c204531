"""What every command does with a line that asks for nothing, help or what there is not, and with bad streams (docs)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from casemate.cli import main
from casemate.cli.parser import COMMANDS, make_parser
from casemate.cli.parser_tree import walk_commands

PATHS = [page.words[1:] for page in walk_commands(make_parser())]
DOES_SOMETHING_ALONE = {("caps",), ("prove",), ("boot",)}
"""Commands that need no argument."""
CASEMATE = [sys.executable, "-m", "casemate"]


def called(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line."""
    try:
        code = main(words)
    except SystemExit as error:
        code = int(error.code or 0)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("words", PATHS, ids=" ".join)
def test_help_is_a_page_that_begins_with_the_usage_of_that_command(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, errors = called((*words, "--help"), capsys)
    assert (code, errors) == (0, "")
    assert output.startswith(" ".join(("usage: casemate", *words)))
    assert output.endswith("\n")


@pytest.mark.parametrize("words", PATHS, ids=" ".join)
def test_wrong_option_shows_the_usage_of_that_command_and_one_line(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, errors = called((*words, "--no-such-option"), capsys)
    assert (code, output) == (2, "")
    assert errors.startswith(" ".join(("usage: casemate", *words)))
    assert errors.splitlines()[-1].startswith(" ".join(("casemate", *words)) + ": error: ")


@pytest.mark.parametrize("words", [path for path in PATHS if path not in DOES_SOMETHING_ALONE], ids=" ".join)
def test_command_without_arguments_shows_how_it_is_used(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, errors = called(words, capsys)
    assert code == (2 if words else 0)
    assert (errors if words else output).startswith(" ".join(("usage: casemate", *words)))


def test_help_of_boot_fits_two_screens_and_help_all_has_the_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, brief, _ = called(("boot", "--help"), capsys)
    _, everything, _ = called(("boot", "--help-all"), capsys)
    assert len(brief.splitlines()) <= 48
    assert "--attest-cmd" not in brief
    options = next(page for page in walk_commands(make_parser()) if page.words[1:] == ("boot",)).options
    assert all(option.option_strings[-1] in everything for option in options)


def in_shell(script: str, *words: str) -> tuple[int, str]:
    """Exit code and standard error of a line of bash; ``"$@"`` is the command."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script, "bash", *CASEMATE, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_reader_that_leaves_early_is_no_error(command: str) -> None:
    code, errors = in_shell('"$@" | head -1 >/dev/null', command, "--help")
    assert code in (0, 141)
    assert errors == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_full_disk_is_one_line(command: str) -> None:
    code, errors = in_shell('"$@" >/dev/full', command, "--help")
    assert code == 5
    assert errors.splitlines() == [
        "casemate: error: standard output cannot be written: No space left on device; make room there"
    ]


def test_full_disk_under_the_output_of_a_run_is_one_line(tmp_path: Path) -> None:
    code, errors = in_shell('"$@" >/dev/full', "prove", "--host", "model:linux-6.18")
    assert code == 5
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", [("caps",), ("completion", "bash"), ("boot", "--bios", "missing.fd")])
def test_closed_streams_change_no_exit_code(streams: str, words: tuple[str, ...]) -> None:
    code, errors = in_shell(f'"$@" {streams}', *words)
    assert code == in_shell('"$@"', *words)[0]
    assert "Traceback" not in errors
    assert "internal error" not in errors
