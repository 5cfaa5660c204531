"""What a firmware project might test of its image; here the image is the installed OVMF (docs/guide/ci.md)."""

from __future__ import annotations

import pytest

from casemate.pytest_plugin import BootGuest, StartGuest


def test_a_sev_es_guest_with_debug_swap_leaves_its_firmware_alone(casemate_boot: BootGuest) -> None:
    outcome = casemate_boot(kind="sev-es", machine="pc", features=["debug-swap"], until="Shell> ")
    assert outcome.exit_code == 0
    assert outcome.report["writes"]["violations"] == 0


@pytest.mark.casemate_axes(kind=["plain", "sev"], era=["linux-6.1", "linux-6.18"])
def test_the_firmware_reaches_its_shell(casemate_boot: BootGuest) -> None:
    assert casemate_boot(machine="pc", until="Shell> ").ending.word == "until"


def test_a_variable_that_the_shell_sets_is_in_the_store(casemate_guest: StartGuest) -> None:
    guest = casemate_guest(machine="pc")
    guest.run("set greeting hello")
    assert "greeting" in guest.run("set greeting")
    assert any(variable.name == "greeting" for variable in guest.variables().variables)
