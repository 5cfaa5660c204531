"""``casemate conform`` about casemate itself, and about what it cannot judge (tools/seed_table.py has the mail)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.firmware_images import require_image

from casemate.cli import main


def own(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, dict[str, str]]:
    code = main(["conform", "--json", "--self", *map(str, words)])
    printed = capsys.readouterr()
    assert printed.out, printed.err
    document: dict[str, Any] = json.loads(printed.out)
    return code, {row["rule"]: row["verdict"] for row in document["vms"][0]["rules"]}


def test_casemates_own_vmm_keeps_the_rules(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    variables = tmp_path / "vars.fd"
    variables.write_bytes(require_image("OVMF_VARS.fd").read_bytes())
    words = ("--guest", "sev-es", "--feature", "debug-swap", "--machine", "pc", "--until", "Shell> ")
    code, found = own(capsys, *words, "--code", require_image("OVMF_CODE.fd"), "--vars", variables)
    assert code == 0
    kept = (
        "launch-order",
        "update-writable",
        "vmsa-once",
        "flash-protected",
        "lifted-for-itself",
        "whole-slot",
    )
    assert {found[rule] for rule in kept} == {"kept"}
    assert "broken" not in found.values()


@pytest.mark.parametrize("guest", ["sev-es", "snp"])
def test_casemates_firmware_in_ram_is_never_protected(capsys: pytest.CaptureFixture[str], guest: str) -> None:
    image = require_image("OVMF.fd")
    code, found = own(capsys, "--guest", guest, "--bios", image, "--machine", "pc", "--timeout", "1")
    assert code == 0
    assert found["bios-never-armed"] == "kept"
    assert found["launch-order"] == "kept"


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "required"), (["--self", "--bogus"], "--bogus"), (["--", "/bin/true"], "made no VM")],
)
def test_what_cannot_be_judged_is_told(words: list[str], said: str) -> None:
    line = [sys.executable, "-m", "casemate", "conform", *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if "has no shared library" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode in (2, 4)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
