"""Stock firmware that really runs as SEV and SEV-ES guest on the modelled host (docs/design/confidential.md)."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from support.booting import BootCli
from support.firmware_images import require_image

from casemate.abi.sev.ghcb import ExitCode

pytestmark = pytest.mark.boot

DEBUG_SWAP = ("--guest", "sev-es", "--feature", "debug-swap")
PAIRS = {
    "bookworm": ("OVMF_CODE.fd", "OVMF_VARS.fd", "pc", "Shell> "),
    "trixie": ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "q35", "Shell> "),
    "sid": ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "q35", "No bootable option"),  # has no shell
}


AS_JSON = ("--json", "--timeout", "100")


def pair(release: str, folder: Path) -> tuple[Path, Path, list[str]]:
    """Code, a copy of the variables, and the options that name both."""
    code_name, template_name, machine, _ = PAIRS[release]
    code, template = require_image(code_name, release), require_image(template_name, release)
    variables = folder / template_name
    shutil.copy(template, variables)
    return code, variables, ["--code", str(code), "--vars", str(variables), "--machine", machine]


@pytest.mark.parametrize("release", PAIRS)
def test_stock_pair_runs_as_sev_es_guest_with_its_flash_behind_readonly_mappings(
    release: str, tmp_path: Path, boot_cli: BootCli
) -> None:
    """The question of it all: does a well-behaved guest go on working when its flash is protected by mprotect?"""
    code, variables, words = pair(release, tmp_path)
    before = hashlib.sha256(code.read_bytes()).hexdigest()
    document = boot_cli(
        *AS_JSON, *words, *DEBUG_SWAP, "--host", "model:linux-6.18", "--until", PAIRS[release][3]
    ).document
    assert document["outcome"] == "until", document["detail"]
    assert [unit["protection"] for unit in document["flash"]] == ["readonly-vma", "readonly-vma"]
    assert len(document["warnings"]) == 1
    assert document["writes"]["violations"] == 0
    assert document["writes"]["commands"] > 1000
    exits, raised = document["requests"]["vmgexits"], document["requests"]["vc"]
    for code_number in (ExitCode.MMIO_WRITE, ExitCode.MMIO_READ, ExitCode.IOIO, ExitCode.CPUID, ExitCode.MSR):
        assert exits[f"{code_number:#x}"] > 0
    assert exits["msr 0x002"] >= 1, "the guest negotiated the protocol"
    assert f"{ExitCode.READ_DR7:#x}" not in raised, "debug-swap: DR7 is the guest's own"
    audit = {(entry["unit"], entry["what"], entry["why"]) for entry in document["protection_audit"]}
    assert (1, "lifted", "command mode") in audit
    assert (0, "lifted", "command mode") not in audit
    assert hashlib.sha256(code.read_bytes()).hexdigest() == before
    assert hashlib.sha256(variables.read_bytes()).hexdigest() == document["flash"][1]["sha256"]


@pytest.mark.parametrize("release", PAIRS)
def test_stock_pair_runs_as_sev_guest(release: str, tmp_path: Path, boot_cli: BootCli) -> None:
    _, _, words = pair(release, tmp_path)
    document = boot_cli(*AS_JSON, *words, "--guest", "sev", "--until", PAIRS[release][3]).document
    assert document["outcome"] == "until", document["detail"]
    assert {unit["protection"] for unit in document["flash"]} == {"readonly-slot"}
    assert document["protection_audit"] == []
    assert set(document["requests"]) == {"pages"}
    assert document["requests"]["pages"]["private"] > 0


def test_without_debug_swap_dr7_raises_vc(tmp_path: Path, boot_cli: BootCli) -> None:
    _, _, words = pair("bookworm", tmp_path)
    document = boot_cli(*AS_JSON, *words, "--guest", "sev-es", "--until", "Shell> ").document
    assert document["outcome"] == "until", document["detail"]
    assert document["requests"]["vc"][f"{ExitCode.READ_DR7:#x}"] > 0


def test_variables_of_a_sev_es_guest_persist(tmp_path: Path, boot_cli: BootCli) -> None:
    _, _, words = pair("bookworm", tmp_path)
    boot_cli(*AS_JSON, *words, *DEBUG_SWAP, "--type", "set greeting kept")
    document = boot_cli(*AS_JSON, *words, *DEBUG_SWAP, "--type", "set greeting").document
    assert "kept" in document["serial"].split("set greeting")[-1]


@pytest.mark.parametrize("guest", [("--guest", "sev"), DEBUG_SWAP], ids=["sev", "sev-es"])
@pytest.mark.parametrize(
    ("name", "release", "machine", "text"),
    [
        ("OVMF.fd", "bookworm", "pc", "Shell> "),
        ("OVMF.fd", "trixie", "q35", "Shell> "),
        ("OVMF.amdsev.fd", "sid", "q35", "No bootable option"),
    ],
)
def test_combined_image_by_bios_runs_confidentially(
    guest: tuple[str, ...],
    name: str,
    release: str,
    machine: str,
    text: str,
    boot_cli: BootCli,
) -> None:
    image = require_image(name, release)
    document = boot_cli(*AS_JSON, "--bios", image, "--machine", machine, *guest, "--until", text).document
    assert document["outcome"] == "until", document["detail"]
    assert document["warnings"] == []
    assert document["protection_audit"] == []


@pytest.mark.parametrize(
    ("options", "outcome", "says"),
    [
        ((*DEBUG_SWAP, "--host", "model:linux-6.18"), "violation", "address unknown (protected state)"),
        (("--guest", "sev-es", "--host", "model:linux-6.18"), "violation", "livelock"),
    ],
    ids=["mapping", "slot"],
)
def test_shell_that_stores_into_protected_flash_ends_the_guest(
    options: tuple[str, ...], outcome: str, says: str, tmp_path: Path, boot_cli: BootCli
) -> None:
    """What the patch promises for misbehaving guests; the write is one of OVMF's own shell."""
    _, _, words = pair("bookworm", tmp_path)
    stores = "mm ffe00000 41 -w 1 -n"
    document = boot_cli(*AS_JSON, *words, *options, "--type", stores, "--until", "never printed").document
    assert document["outcome"] == outcome, document["detail"]
    assert says in document["detail"]
    assert document["exit_code"] == 1
