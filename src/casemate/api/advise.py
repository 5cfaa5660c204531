"""Inspecting, linting and opening variable stores as calls (docs/guide/python.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casemate.abi.kernel_eras import NEWEST
from casemate.advise.inspect import Inspection, inspect_image
from casemate.advise.lint import lint as lint_words
from casemate.advise.rule import Finding, HostFacts
from casemate.advise.variable_file import VariableFile
from casemate.errors import ImageError
from casemate.files import read_file
from casemate.firmware.image import FirmwareImage
from casemate.qemu.source import read_commands

Source = str | Path


def inspect(path: Source) -> Inspection:
    """Say what a firmware file is, and which guests can use it. Raises ImageError if it cannot be read."""
    return inspect_image(FirmwareImage.load(path))


def lint(command: str | Sequence[str], era: str = NEWEST) -> list[Finding]:
    """What is wrong with a guest before it is started: a QEMU command line as words, or as text whatever
    ``casemate lint FILE`` reads: a script, a libvirt domain as XML.

    ``era`` is the kernel of the host, such as ``linux-6.8``. Raises SpecError for what is neither.
    """

    def load(path: str) -> FirmwareImage | None:
        try:
            return FirmwareImage.load(path)
        except ImageError:
            return None

    if not isinstance(command, str):
        return lint_words(command, HostFacts.of_era(era), load)[0]
    found = (
        lint_words(each, HostFacts.of_era(era), load)[0] for each in read_commands(command.encode(), "lint")
    )
    return [finding for findings in found for finding in findings]


def open_variables(path: Source) -> VariableFile:
    """Read a UEFI variable store: a flash image, or the JSON of QEMU's ``uefi-vars`` device.

    ``VariableFile.encode`` makes the file with other variables. Raises ImageError if it is neither form.
    """
    return VariableFile.parse(read_file(path), str(path))
