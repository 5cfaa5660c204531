"""What stock firmware did to its flash, explained (real Debian images)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.firmware_images import require_image

from casemate.cli import boot_text
from casemate.machine.boot import boot
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.spec import MachineSpec

pytestmark = pytest.mark.boot

PROMPT = "Shell> "
SEC_CORE = 0xFFE20000 + 0x1AC100


def run(folder: Path, release: str, size: str, *typed: str) -> Outcome:
    code, template = (require_image(f"OVMF_{part}{size}.fd", release) for part in ("CODE", "VARS"))
    variables = folder / "VARS.fd"
    shutil.copy(template, variables)
    spec = MachineSpec(code=code, variables=variables)
    return boot(spec, until=None if typed else PROMPT, typed=typed, timeout=100)


@pytest.mark.parametrize(("release", "size"), [("bookworm", ""), ("bookworm", "_4M"), ("trixie", "_4M")])
def test_first_boot_is_explained(release: str, size: str, tmp_path: Path) -> None:
    outcome = run(tmp_path, release, size)
    assert outcome.ending is Ending.UNTIL
    writes = outcome.report["writes"]
    assert (writes["violations"], writes["events"]) == (0, [])
    unit = writes["units"][1]
    assert unit["programs"] > 5000
    assert unit["probes"] >= 2
    names = {variable["name"] for variable in unit["variables"]}
    assert {"BootOrder", "Boot0000", "ConOut", "Timeout"} <= names
    attributed = sum(variable["bytes"] for variable in unit["variables"]) + sum(unit["other"].values())
    assert attributed == unit["programs"] == sum(block["programs"] for block in unit["blocks"])
    assert (
        sum(item["count"] for item in unit["activity"]) == unit["programs"] + unit["erases"] + unit["probes"]
    )
    text = boot_text.summary(outcome, verbose=False)
    assert f"{unit['programs']} programs, 0 erases, 0 violations" in text
    assert f"variables {len(names)}: " in text


def test_store_of_the_shell_into_code_is_one_violation_that_says_who_and_where(tmp_path: Path) -> None:
    outcome = run(tmp_path, "bookworm", "", f"mm {SEC_CORE:x} 41 -w 1 -n")
    assert outcome.ending is Ending.UNTIL
    assert outcome.report["writes"]["violations"] == 1
    event = outcome.report["writes"]["events"][0]
    assert (event["gpa"], event["value"], event["unit"]) == (SEC_CORE, 0x41, 0)
    assert event["path"] == "write to a read-only slot"
    assert event["instruction"] == "rep movsb [rdi],[rsi]"
    assert event["rip"]
    assert event["owner"] == "offset 0x1ac100, firmware volume at 0x1ac000, file SecMain (SEC core)"
    assert event["owner"] in boot_text.summary(outcome, verbose=False)
