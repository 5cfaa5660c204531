"""``casemate conform`` about VMMs: the design of the mail in its versions, QEMU, and casemate itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.firmware_images import require_image
from support.vmm_programs import Vmm

from casemate.cli import main


@pytest.mark.parametrize(
    ("version", "firmware", "broken", "ran"),
    [
        ("first", "-pflash", set(), True),
        ("first", "-bios", {"bios-never-armed"}, False),
        ("first", "-pflash-hashes", {"ram-never-armed", "whole-slot"}, False),
        ("final", "-pflash", set(), True),
        ("final", "-bios", set(), True),
        ("final", "-pflash-hashes", set(), True),
    ],
)
def test_each_regression_of_the_mail_is_found_and_its_rule_named(
    run_vmm: Vmm, version: str, firmware: str, broken: set[str], ran: bool
) -> None:
    done = run_vmm("vmm", version, firmware, command="conform", options=("--json",))
    document = json.loads(done.stdout[done.stdout.index("\n{\n") :])
    assert {row["rule"] for row in document["vms"][0]["rules"] if row["verdict"] == "broken"} == broken
    assert document["vms"][0]["type"] == "KVM_X86_SEV_ES_VM"
    assert document["exit_code"] == (0 if ran else 1)
    assert done.returncode == (1 if broken else 0)
    assert ("exit reason 5" if ran else "KVM_RUN: Bad address, exit reason 0") in done.stdout


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
    assert done.returncode in (2, 4)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
