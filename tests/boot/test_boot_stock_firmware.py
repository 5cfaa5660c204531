"""Stock firmware on the modelled host: to the prompt, with variables that last (real Debian images)."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.firmware_images import require_image

from casemate.machine.boot import boot
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.spec import MachineSpec
from casemate.memory.protection import OnWrite

pytestmark = pytest.mark.boot

PROMPT = "Shell> "
PAIRS = {
    "2M": ("OVMF_CODE.fd", "OVMF_VARS.fd"),
    "4M": ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
}


def spec_of(size: str, release: str, folder: Path, **options: Any) -> MachineSpec:
    """A machine with this pair in flash, its variables a fresh copy."""
    code, template = (require_image(name, release) for name in PAIRS[size])
    variables = folder / template.name
    shutil.copy(template, variables)
    return MachineSpec(code=code, variables=variables, **options)


def sha256(path: Path | None) -> str:
    assert path is not None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plain_text(outcome: Outcome) -> str:
    """What the guest printed, without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;=]*[a-zA-Z]", "", outcome.serial)


@pytest.mark.parametrize(
    ("size", "release", "machine"),
    [
        ("2M", "bookworm", "q35"),
        ("2M", "bookworm", "pc"),
        ("4M", "bookworm", "q35"),
        ("4M", "trixie", "q35"),
        ("4M", "trixie", "pc"),
    ],
)
def test_stock_pair_reaches_the_prompt(size: str, release: str, machine: str, tmp_path: Path) -> None:
    spec = spec_of(size, release, tmp_path, machine=machine)
    before = sha256(spec.code)
    outcome = boot(spec, until=PROMPT, timeout=100)
    assert outcome.ending is Ending.UNTIL, outcome
    assert [phase["name"] for phase in outcome.report["phases"]] == ["PEI", "DXE", "BDS", "shell"]
    assert outcome.report["writes"]["commands"] > 1000
    assert sha256(spec.code) == before == outcome.report["flash"][0]["sha256"]
    assert sha256(spec.variables) == outcome.report["flash"][1]["sha256"]


@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_combined_image_by_bios_reaches_the_prompt(release: str) -> None:
    outcome = boot(MachineSpec(bios=require_image("OVMF.fd", release)), until=PROMPT, timeout=100)
    assert outcome.ending is Ending.UNTIL, outcome
    assert outcome.report["flash"] == []


def test_image_without_a_shell_reaches_its_boot_manager(tmp_path: Path) -> None:
    outcome = boot(spec_of("4M", "sid", tmp_path), until="No bootable option", timeout=100)
    assert outcome.ending is Ending.UNTIL, outcome


@pytest.mark.parametrize("release", ["bookworm", "trixie", "sid"])
def test_seabios_prints_its_version_on_the_debug_port(release: str) -> None:
    outcome = boot(
        MachineSpec(bios=require_image("bios-256k.bin", release)), until="SeaBIOS (version", timeout=60
    )
    assert outcome.ending is Ending.UNTIL, outcome


def test_variable_set_in_one_run_is_there_in_the_next_and_for_others(tmp_path: Path) -> None:
    spec = spec_of("4M", "bookworm", tmp_path)
    first = boot(spec, typed=["set greeting casemate-was-here"], timeout=100)
    assert first.ending is Ending.UNTIL, first
    second = boot(spec, typed=["set greeting"], timeout=100)
    assert "greeting = casemate-was-here" in plain_text(second)
    tool = Path(sys.executable).with_name("virt-fw-vars")
    if not tool.exists():
        pytest.skip("virt-fw-vars is not installed: pip install virt-firmware")
    listed = subprocess.run(
        [tool, "--input", str(spec.variables), "--print", "--verbose"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "greeting" in listed.stdout


def test_date_and_memory_are_what_the_machine_has(tmp_path: Path) -> None:
    spec = spec_of("2M", "bookworm", tmp_path, memory=512 << 20)
    outcome = boot(spec, typed=["memmap", "pci"], timeout=100)
    assert "8086" in plain_text(outcome)
    assert "29C0" in plain_text(outcome)
    total = plain_text(outcome).split("Total Memory:")[1].split("MB")[0]
    assert 490 < int(total.strip().split()[0].replace(",", "")) <= 512


def test_reset_starts_the_firmware_again(tmp_path: Path) -> None:
    outcome = boot(spec_of("2M", "bookworm", tmp_path), typed=["reset", "ver"], timeout=100)
    assert outcome.ending is Ending.UNTIL, outcome
    assert outcome.report["guest"]["resets"] == 1


def test_power_off_is_a_success_of_its_own(tmp_path: Path) -> None:
    outcome = boot(spec_of("2M", "bookworm", tmp_path), typed=["reset -s"], timeout=100)
    assert (outcome.ending, outcome.exit_code) == (Ending.POWER_OFF, 0)


def test_six_gib_of_memory_lie_on_both_sides_of_the_hole(tmp_path: Path) -> None:
    outcome = boot(spec_of("2M", "bookworm", tmp_path, memory=6 << 30), typed=["memmap"], timeout=100)
    assert outcome.ending is Ending.UNTIL, outcome
    assert "0000000100000000" in plain_text(outcome)


@pytest.mark.parametrize("protection", ["vma", "view"])
def test_plain_firmware_dies_of_its_own_flash_probe_behind_a_protected_mapping(
    protection: str, tmp_path: Path
) -> None:
    spec = spec_of("2M", "bookworm", tmp_path, protection=protection, on_write=OnWrite.KILL)
    outcome = boot(spec, until=PROMPT, timeout=100)
    assert outcome.ending is Ending.VIOLATION
    event = outcome.report["writes"]["events"][-1]
    assert (event["unit"], event["value"]) == (1, 0x50)


def test_plain_firmware_with_dropped_probes_boots_without_flash(tmp_path: Path) -> None:
    spec = spec_of("2M", "bookworm", tmp_path, protection="vma", on_write=OnWrite.DROP)
    before = sha256(spec.variables)
    outcome = boot(spec, until=PROMPT, timeout=100)
    assert outcome.ending is Ending.UNTIL, outcome
    assert outcome.report["writes"]["commands"] == 0
    assert sha256(spec.variables) == before
