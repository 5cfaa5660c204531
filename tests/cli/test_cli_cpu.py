"""``casemate boot --cpu`` (docs/guide/boot.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.booting import BootCli, TinyGuest

from casemate.abi.x86.cpu_models import find_model
from casemate.cli import main

RUN = ("--host", "model", "--json", "--timeout", "20")
SAY_SIGNATURE = "mov eax, 1; cpuid; shr eax, 8; out 0xf4, al; hlt"
"""Family and type; enough to tell the processors of the tests apart."""


def said(name: str) -> int:
    return find_model(name).signature >> 8 & 0xFF


def test_help_lists_models_features_and_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["boot", "--cpu", "help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert (
        "EPYC-Milan                 AMD EPYC-Milan Processor\n      without amd-ssbd amd-stibp avx avx2 "
        in text
    )
    assert "usual: max for plain guests, EPYC-v4 for confidential ones" in text
    assert {"smap", "smep", "umip"} <= set(text.split())


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("EPYC-Milann", "no CPU model 'EPYC-Milann'; did you mean EPYC-Milan?"),
        ("max,+smapp", "no CPU feature 'smapp'; did you mean smap?"),
        ("EPYC,+avx", "CPU feature avx cannot be had: the engine has no registers of 256 bits"),
        ("max,+tsc-deadline", "CPU feature tsc-deadline cannot be had: the modelled local APIC has it not"),
        ("EPYC,enforce", "CPU model EPYC has what cannot be had"),
        ("host", "the modelled processor is not this computer's; use max"),
        ("max,phys-bits=60", "phys-bits=60; give 40 to 52"),
    ],
)
def test_wrong_value_is_a_usage_error_with_the_nearest_right_one(
    value: str, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["boot", "--cpu", value])
    assert ended.value.code == 2
    assert cause in capsys.readouterr().err


@pytest.mark.parametrize("name", ["qemu64", "Westmere", "EPYC-Rome"])
def test_guest_runs_on_the_processor_that_was_asked_for(
    name: str, tiny_guest: TinyGuest, boot_cli: BootCli
) -> None:
    ended = boot_cli(*RUN, "--bios", tiny_guest(SAY_SIGNATURE), "--cpu", name)
    assert ended.document["exit_port"] == said(name)
    assert boot_cli(*RUN, "--", "-bios", tiny_guest(SAY_SIGNATURE), "-cpu", name).document[
        "exit_port"
    ] == said(name)


def test_what_is_left_out_is_said_once(tiny_guest: TinyGuest, boot_cli: BootCli) -> None:
    ended = boot_cli(*RUN, "--bios", tiny_guest("out 0xf4, al; hlt"), "--cpu", "EPYC-Milan")
    assert (
        "casemate: warning: CPU model EPYC-Milan is modelled without amd-ssbd, amd-stibp, avx, avx2, "
        in ended.err
    )
    whole = boot_cli(*RUN, "--bios", tiny_guest("out 0xf4, al; hlt"), "--cpu", "qemu64,-svm")
    assert "modelled without" not in whole.err


def test_processor_is_refused_for_guests_on_kvm(tiny_guest: TinyGuest, boot_cli: BootCli) -> None:
    ended = boot_cli("--host", "kvm", "--json", "--bios", tiny_guest("out 0xf4, al; hlt"), "--cpu", "max")
    assert ended.code == 4
    assert "--cpu is for the modelled host" in ended.err


SEV_ES = ("--guest", "sev-es", "--feature", "debug-swap")


@pytest.mark.parametrize(
    ("words", "shown", "differ"),
    [
        ((), "EPYC-v4", False),
        (("--vcpu-type", "EPYC-Milan"), "EPYC-Milan", False),
        (("--vcpu-type", "EPYC-v9"), "EPYC", False),
        (("--cpu", "EPYC-Milan"), "EPYC-Milan", False),
        (("--cpu", "EPYC-Milan", "--vcpu-type", "EPYC-v4"), "EPYC-Milan", True),
    ],
)
def test_measured_signature_and_cpuid_agree_or_a_line_says_so(
    words: tuple[str, ...], shown: str, differ: bool, tiny_guest: TinyGuest, boot_cli: BootCli
) -> None:
    # What the save area has in RDX is what the processor starts with.
    guest = tiny_guest("mov ebx, edx; mov eax, 1; cpuid; shr eax, 8; out 0xf4, al; hlt")
    ended = boot_cli(*RUN, "--guest", "sev", *words, "--bios", guest)
    assert ended.document["exit_port"] == said(shown)
    assert ("measured is the vCPU type" in ended.err) == differ
    types = {"given": words, "shown": ("--vcpu-type", shown), "other": ("--vcpu-type", "EPYC-Turin")}
    digests = {
        name: boot_cli("--json", "--dry-run", *SEV_ES, *given, "--bios", guest).document["digest"]
        for name, given in types.items()
    }
    assert (digests["given"] == digests["shown"]) != differ
    assert digests["given"] != digests["other"]


def test_wide_addresses_are_refused_for_confidential_guests(tmp_path: Path, boot_cli: BootCli) -> None:
    ended = boot_cli(*RUN, "--guest", "sev", "--cpu", "EPYC,phys-bits=46", "--bios", tmp_path / "x")
    assert ended.code == 4
    assert "end at the C-bit" in ended.err
