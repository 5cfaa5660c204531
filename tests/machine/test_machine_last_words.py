"""Guests that say that they cannot go on: what ends the run, what does not, and what is told (docs/guide/boot.md)."""

from __future__ import annotations

import re

import pytest
from support.booting import BootCli, TinyGuest
from support.firmware_images import require_image

from casemate.events import Event
from casemate.machine.console import Console
from casemate.machine.last_words import LINES, PROMPTS

NO_OPTION = "BdsDxe: No bootable option or device was found.\r\r\n"
SAID = {
    "nothing to boot": NO_OPTION,
    "key": "BdsDxe: Press any key to enter the Boot Manager Menu.\r\n",
    "no GRUB": "\x1b[2JBdsDxe: No bootable option was found.\r\n",
    "exception": "!!!! Find image based on IP(0x7EC7B3C4) (No PDB)  (ImageBase=000000007EC70000) !!!!\r\n",
    "assertion": "ASSERT [DxeCore] /build/edk2/MdePkg/Library/BaseLib/String.c(123): Length < Max\r\n",
    "halted": "[   12.345678] reboot: System halted\r\n",
    "GRUB": "\x1b[0mgrub> ",
    "GRUB's rescue": "grub rescue> ",
    "initrd": "(initramfs) ",
}
JUMP_TO_SELF = b"\xeb\xfe"


class Sink:
    """Hears of milestones, and forgets them."""

    def report(self, event: Event) -> None:
        """Take note of one event."""


def say(text: str) -> bytes:
    """Code of a guest that prints on its serial port and then loops for good."""
    printed = b"".join(
        b"\xb0" + bytes((byte,)) + b"\xee" for byte in text.encode()
    )  # mov al, byte; out dx, al
    return b"\x66\xba\xf8\x03" + printed + JUMP_TO_SELF  # mov dx, 0x3f8


def heard(text: str, **options: object) -> list[str]:
    """What a console makes of a text that a guest prints."""
    console, reasons = Console(Sink(), **options), []  # type: ignore[arg-type]
    console.connect(lambda data: None, lambda: reasons.append("until"), on_last_words=reasons.append)
    for byte in text.encode():
        console.put(byte)
    return reasons


@pytest.mark.parametrize("text", SAID.values(), ids=SAID)
def test_each_kind_of_last_words_is_explained_with_what_was_said(text: str) -> None:
    (reason,) = heard(text)
    assert text.replace("\x1b[2J", "").replace("\x1b[0m", "").strip() in reason


def test_every_row_of_the_table_is_among_these() -> None:
    texts = [text.encode() for text in SAID.values()]
    assert all(any(re.search(row.said, text) for text in texts) for row in (*LINES, *PROMPTS))


@pytest.mark.parametrize(
    "text",
    [
        'BdsDxe: loading Boot0001 "EFI Internal Shell" from Fv(7CB8BDC9)\r\n',
        "Press ESC in 5 seconds to skip startup.nsh or any other key to continue.\r\n",
        "Shell> ",
        "ASSERT that you are ready\r\n",
        "reboot: Power down\r\n",
        NO_OPTION.rstrip(),
    ],
)
def test_other_words_and_lines_that_have_not_ended_are_nobody_s_last(text: str) -> None:
    assert heard(text) == []


def test_somebody_at_the_console_may_still_press_a_key() -> None:
    assert heard(NO_OPTION, attending=True) == []


def test_what_is_waited_for_comes_first() -> None:
    assert heard(NO_OPTION, until="No bootable option")[0] == "until"
    assert heard("grub> ", typed=["ls"], prompt="grub> ") == []


def test_debug_port_is_heard_as_well() -> None:
    console, reasons = Console(Sink()), []  # type: ignore[var-annotated]
    console.connect(lambda data: None, lambda: None, on_last_words=reasons.append)
    for byte in SAID["assertion"].encode():
        console.debug(byte)
    assert len(reasons) == 1


MODEL = ("--host", "model", "--json")
TINY = (*MODEL, "--memory", "16M", "--timeout", "30", "--bios")


def test_run_ends_with_reason_and_remedy(boot_cli: BootCli, tiny_guest: TinyGuest) -> None:
    document = boot_cli("--until", "Shell> ", *TINY, tiny_guest(say(NO_OPTION))).document
    assert document["outcome"] == "gave-up"
    assert "--kernel" in str(document["detail"])


def test_guest_that_halts_for_good_ends_the_run_that_waits_for_it(
    boot_cli: BootCli, tiny_guest: TinyGuest
) -> None:
    document = boot_cli("--until", "Shell> ", *TINY, tiny_guest("cli; hlt")).document
    assert (document["outcome"], document["exit_code"]) == ("gave-up", 1)
    assert "halted" in str(document["detail"])


def test_prompt_without_anybody_to_type_ends_the_run(boot_cli: BootCli, tiny_guest: TinyGuest) -> None:
    ended = boot_cli(*TINY, tiny_guest(say("Shell> ")))
    assert (ended.code, ended.document["outcome"]) == (0, "left")


@pytest.mark.boot
def test_firmware_without_an_own_boot_option_gives_up_as_bios_and_says_how_its_shell_is_reached(
    boot_cli: BootCli,
) -> None:
    image = require_image("OVMF.fd", "sid")
    ended = boot_cli(*MODEL, "--timeout", "100", "--until", "Shell> ", "--bios", image)
    assert (ended.code, ended.document["outcome"]) == (1, "gave-up")
    assert "--bios" in ended.document["detail"]


@pytest.mark.boot
def test_probes_of_plain_firmware_by_bios_are_no_violations(boot_cli: BootCli) -> None:
    image = require_image("OVMF.fd", "trixie")
    writes = boot_cli(*MODEL, "--timeout", "100", "--until", "Shell> ", "--bios", image).document["writes"]
    assert writes["probes"] >= 2
    assert (writes["violations"], writes["events"]) == (0, [])
