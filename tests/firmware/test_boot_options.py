"""The firmware's shell as the next boot: in which variables it is named, and that the firmware then starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.firmware_images import require_image

from casemate.advise.store_check import check_store
from casemate.cli import main
from casemate.firmware.boot_options import SHELL_FILE, shell_as_next_boot
from casemate.firmware.image import FirmwareImage
from casemate.firmware.variables import VENDORS, Variable

ACTIVE, APPLICATION = 0x1, 0x101


def variable(name: str, data: bytes) -> Variable:
    """A variable of UEFI's own."""
    return Variable(name, VENDORS["global"], 7, data)


def option(attributes: int, path: bytes = b"") -> bytes:
    """A boot option with a name and a path."""
    name = "an option\0".encode("utf-16-le")
    return attributes.to_bytes(4, "little") + len(path).to_bytes(2, "little") + name + path


def named(variables: list[Variable]) -> bytes | None:
    """What ``BootNext`` becomes, or None if nothing is changed; the image has no shell."""
    changed = shell_as_next_boot(variables, FirmwareImage.from_bytes(bytes(0x10000), "empty"))
    return None if changed is None else next(one.data for one in changed if one.name == "BootNext")


MENU = variable("Boot0000", option(APPLICATION))
SHELL = variable("Boot000A", option(APPLICATION, SHELL_FILE))


def test_shell_that_is_registered_and_never_booted_is_named() -> None:
    assert named([MENU, SHELL, variable("BootOrder", b"\0\0\x0a\0")]) == b"\x0a\0"


@pytest.mark.parametrize(
    "variables",
    [
        [],
        [MENU, variable("BootOrder", b"\0\0")],
        [MENU, SHELL, variable("BootOrder", b"\0\0\x0a\0"), variable("BootNext", b"\0\0")],
        [SHELL, variable("Boot0001", option(ACTIVE)), variable("BootOrder", b"\x0a\0\1\0")],
    ],
    ids=["no shell in the image", "no shell registered", "another next boot", "something to boot"],
)
def test_nothing_is_changed_where_something_is_booted_or_there_is_no_shell(variables: list[Variable]) -> None:
    assert named(variables) is None


def test_broken_options_boot_nothing() -> None:
    assert named([SHELL, variable("Boot0001", b""), variable("BootOrder", b"\1\0\3")]) == b"\x0a\0"


def test_option_outside_of_the_boot_order_boots_nothing() -> None:
    assert named([SHELL, variable("Boot0001", option(ACTIVE)), variable("BootOrder", b"\x0a\0")]) == b"\x0a\0"


@pytest.mark.parametrize(("release", "changes"), [("sid", True), ("trixie", False), ("bookworm", False)])
def test_new_store_is_changed_for_firmware_that_needs_it_only(release: str, changes: bool) -> None:
    code = FirmwareImage.load(require_image("OVMF_CODE_4M.fd", release))
    store = require_image("OVMF_VARS_4M.fd", release).read_bytes()
    changed = shell_as_next_boot(check_store(store, "template").variables, code)
    assert (changed is not None) == changes


@pytest.mark.boot
def test_installed_firmware_reaches_its_shell_the_first_and_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = require_image("OVMF_CODE_4M.fd", "sid").parents[3]
    monkeypatch.setenv("CASEMATE_FIRMWARE", str(root))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for _ in range(2):
        code = main(["boot", "--host", "model", "--until", "Shell> ", "--timeout", "100", "--json"])
        document = json.loads(capsys.readouterr().out)
        assert (code, document["outcome"]) == (0, "until")
        assert document["flash"][0]["file"].startswith(str(root))
