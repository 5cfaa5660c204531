"""What guests print when they cannot go on, and what to do about it (edk2 BdsEntry.c and CpuExceptionHandlerLib, GRUB).

Nothing ends a guest that waits for a key, or stands in a loop for good, but its output says that it does.
"""

from __future__ import annotations

import re


class LastWords:
    """One row of the table: what is said, as a regular expression, what it means, and the remedy (may be empty)."""

    def __init__(self, said: bytes, reason: str, remedy: str = "") -> None:
        self.said, self.reason, self.remedy = said, reason, remedy

    def explain(self, line: bytes) -> str:
        """The reason with the line that was said, and the remedy; one line."""
        text = re.sub(_CONTROL, b"", line).decode(errors="replace").strip()
        return f"{self.reason} ({text!r})" + (f"; {self.remedy}" if self.remedy else "")


_CONTROL = rb"\x1b\[[0-9;?=]*[A-Za-z]|[\x00-\x1f\x7f]"
_NOTHING_TO_BOOT = (
    "the firmware found nothing to boot, and waits for a key",
    "give it a kernel with --kernel, or leave --vars and --bios out: in variables of its own casemate names the"
    " firmware's shell as the next boot",
)

LINES = (
    LastWords(rb"BdsDxe: No bootable option or device was found", *_NOTHING_TO_BOOT),
    LastWords(rb"Press any key to enter the Boot Manager Menu", *_NOTHING_TO_BOOT),
    LastWords(
        rb"BdsDxe: No bootable option was found",
        "the firmware starts GRUB from its own image, or a kernel, and found neither",
        "give it a kernel with --kernel",
    ),
    LastWords(
        rb"!!!! (?:Find image based on IP|Can't find image information)",
        "the firmware's exception handler stopped the processor for good; its registers are printed above",
    ),
    LastWords(
        rb"ASSERT(?:_EFI_ERROR)? ?[\[(].*\.[ch]",
        "a debug build of the firmware stopped for good where it does not hold what it assumes",
    ),
    LastWords(rb"reboot: System halted", "the guest's kernel halted without powering off"),
)
"""Looked for in each whole line that the guest prints on its serial or debug port."""

PROMPTS = (
    LastWords(
        rb"grub(?: rescue)?> $",
        "GRUB found nothing to start, and waits at its prompt",
        "type there with --prompt 'grub> ' --type COMMAND, or leave --until out at a terminal",
    ),
    LastWords(
        rb"\(initramfs\) $",
        "the initrd found no root file system, and waits at its prompt",
        "give one that needs none, or type there with --prompt '(initramfs) ' --type COMMAND",
    ),
)
"""Looked for at the end of what the guest has printed."""


def find_last_words(line: bytes) -> LastWords | None:
    """What a whole line, or the beginning of one, says about the end; None for all other lines."""
    rows = LINES if line.endswith(b"\n") else PROMPTS
    return next((row for row in rows if re.search(row.said, line)), None)
