"""Power cuts as users ask for them, and what a cut leaves of one flash command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from casemate.cli import main
from casemate.cli.power_cuts import CutRequest, cut_request, table
from casemate.guests.actions import tell
from casemate.guests.entry import make_image
from casemate.machine.power_cut import FlashChange, store_after_cut, torn
from casemate.power_cuts import Judgement


@pytest.mark.parametrize(
    ("text", "request_"),
    [("17", CutRequest(17, 0)), ("all", CutRequest(None, sys.maxsize)), ("all:200", CutRequest(None, 200))],
)
def test_request_is_read(text: str, request_: CutRequest) -> None:
    assert cut_request(text) == request_


def test_random_request_is_the_same_for_a_seed() -> None:
    assert cut_request("random:a") == cut_request("random:a") != cut_request("random:b")


@pytest.mark.parametrize("text", ["", "0", "-1", "all:0", "all:x", "random", "random:", "x"])
def test_other_request_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no cut"):
        cut_request(text)


@pytest.mark.parametrize("options", [["--bios", "x.fd"], ["--code", "x.fd"]])
def test_cut_without_a_variable_store_is_refused(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["boot", "--json", "--cut-power-at", "1", *options]) == 4
    assert "needs a variable store" in capsys.readouterr().err


def test_cut_of_a_confidential_guest_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--guest", "sev", "--code", "x.fd", "--vars", "y.fd"]
    assert main(["boot", "--json", "--cut-power-at", "all", *options]) == 4
    assert "is for plain guests" in capsys.readouterr().err


def test_torn_change_is_its_first_half() -> None:
    assert torn(b"\xff", b"\x5a") == b"\xfa"
    assert torn(bytes(4), b"\xff" * 4) == b"\xff\xff\0\0"


def test_store_after_a_cut_has_all_changes_before_it() -> None:
    changes = [
        FlashChange(0, b"\xff", b"\x11"),
        FlashChange(1, b"\xff", b"\x22"),
        FlashChange(2, b"\xff", b"\x33"),
    ]
    assert store_after_cut(b"\xff" * 4, changes, 2) == b"\x11\xf2\xff\xff"


def test_table_counts_what_is_alike() -> None:
    judgements = [Judgement(number, "clean", "until", "clean") for number in (3, 4)]
    rows = table([*judgements, Judgement(5, "torn", "timeout", "torn")]).splitlines()
    assert rows[2:] == ["| clean | until | clean | 2 | 3 |", "| torn | timeout | torn | 1 | 5 |"]


def test_cut_that_never_comes_is_said_with_the_number_of_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, variables = tmp_path / "code.fd", tmp_path / "vars.fd"
    image.write_bytes(make_image(tell(7), 32))
    variables.write_bytes(b"\xff" * 0x10000)
    words = ["boot", "--host", "model", "--machine", "bare", "--memory", "16M", "--serial", "none"]
    assert main([*words, "--code", str(image), "--vars", str(variables), "--cut-power-at", "7"]) == 0
    assert (
        "the power never failed: the guest made 0 flash commands, and the cut was at 7"
        in capsys.readouterr().err
    )
