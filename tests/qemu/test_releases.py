"""The table of QEMU's releases against the binaries of the roots, and what it says between them."""

from __future__ import annotations

import shutil

import pytest

from casemate.cli.ask_qemu import ask_qemu
from casemate.errors import SpecError, UnsupportedError
from casemate.qemu.releases import QemuFacts, known_releases, nearest, takes_value, version_of
from tools.qemu_releases import commands
from tools.roots.recipes import SUITES


@pytest.mark.parametrize("suite", SUITES)
def test_table_has_what_the_binary_of_the_root_lists_and_nothing_else(suite: str) -> None:
    command = dict(commands()).get(suite)
    if command is None:
        pytest.skip(f"no QEMU in the root {suite}-full, or not root: ./dev roots makes it")
    asked = ask_qemu(command)
    known = {release.version: release for release in known_releases()}
    assert known[asked.version].to_dict() == asked.to_dict()


def test_a_binary_is_asked() -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64")
    facts = QemuFacts(ask_qemu(["qemu-system-x86_64"]))
    assert not facts.lacks_option("-machine")
    assert not facts.lacks_property("memory-backend-ram", "size")
    assert facts.lacks_object("nocc")


@pytest.mark.parametrize("command", [["false"], ["/no/such/qemu"], ["cat"]])
def test_what_is_no_qemu_is_refused(command: list[str]) -> None:
    with pytest.raises(UnsupportedError, match="does not answer as QEMU does"):
        ask_qemu(command)


def test_between_two_known_releases_only_the_certain_is_said() -> None:
    between = QemuFacts((9, 0))
    assert between.lacks_object("nocc")
    assert not between.lacks_object("acpi-generic-initiator")  # 10.0 has it, 7.2 does not: nobody knows
    assert between.lacks_object("sev-snp-guest")  # release notes know
    assert not between.lacks_machine_property("smm")


@pytest.mark.parametrize("option", ["-M", "-qtest", "-qtest-log"])
def test_option_that_help_does_not_list_is_known(option: str) -> None:
    """QEMU 7.2 answers each of them with "requires an argument", and ``-foo`` with "invalid option"."""
    assert takes_value(option)
    assert not any(QemuFacts(known.version).lacks_option(option) for known in known_releases())


def test_debug_swap_is_in_no_release() -> None:
    for release in (None, *(known.version for known in known_releases())):
        assert QemuFacts(release).lacks_property("sev-guest", "debug-swap")


@pytest.mark.parametrize("text", ["", "10", "ten.two", "1.2.3.4", "10.-1", "9999.1"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="no version"):
        version_of(text)


def test_nearest_name_is_offered_for_typing_errors_only() -> None:
    assert "'policy'" in nearest("polcy", ["policy", "handle"])
    assert nearest("zzz", ["policy", "handle"]) == ""
