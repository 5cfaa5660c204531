"""UEFI's boot options in a variable store, and the firmware's own shell among them (UEFI 2.10, 3.1; edk2 OvmfPkg).

Firmware of 2025 and later registers its shell as an application, which nobody boots without being told to: a guest
without disks ends in a menu. ``BootNext`` tells it to, once.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from enum import IntFlag

from casemate.firmware.guids import guid
from casemate.firmware.image import FirmwareImage
from casemate.firmware.variables import VENDORS, Attributes, Variable
from casemate.firmware.volume import read_volume

SHELL_FILE = guid("7c04a583-9e3e-4f1c-ad65-e05268d0b4d1")
"""Name of edk2's shell in a firmware volume."""
_BOOT_MENU_FILE = guid("eec25bdc-67f2-4d95-b1d5-f81b2039d11d")
"""Name of edk2's BootManagerMenuApp: builds that have it register their shell as one more application."""
_BOOT_OPTION = re.compile(r"Boot[0-9A-F]{4}")
_DXE_VOLUME = guid("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")
_VOLUME_NODE, _FILE_NODE, _END_NODE = b"\x04\x07\x14\x00", b"\x04\x06\x14\x00", b"\x7f\xff\x04\x00"
_SHELL_NAME = "EFI Internal Shell"
_GLOBAL = VENDORS["global"]
_PERSISTENT = Attributes.NV | Attributes.BS | Attributes.RT


class LoadOption(IntFlag):
    """Attributes of a boot option, its first four bytes."""

    ACTIVE = 0x1
    CATEGORY = 0x1F00
    """Zero for what is booted in turn; 0x100 for applications."""


def shell_as_next_boot(variables: Sequence[Variable], code: FirmwareImage) -> list[Variable] | None:
    """The variables with the shell of ``code`` as the next boot; None if something else would be booted anyway.

    A store that firmware has used names the shell itself; in a new one it is named if the image has one.
    """
    by_name = {variable.name: variable for variable in variables if variable.guid == _GLOBAL}
    options = {name: entry.data for name, entry in by_name.items() if _BOOT_OPTION.fullmatch(name)}
    order = by_name["BootOrder"].data if "BootOrder" in by_name else b""
    tried = (f"Boot{number:04X}" for (number,) in struct.iter_unpack("<H", order[: len(order) & ~1]))
    if "BootNext" in by_name or any(_is_booted(options.get(name, b"")) for name in tried):
        return None
    shell = next((name for name, option in options.items() if SHELL_FILE in option), None)
    if shell is not None:
        return [*variables, _variable("BootNext", int(shell[4:], 16).to_bytes(2, "little"))]
    if options or not _has_unbooted_shell(code):
        return None
    path = _VOLUME_NODE + _DXE_VOLUME + _FILE_NODE + SHELL_FILE + _END_NODE
    name = _SHELL_NAME.encode("utf-16-le") + b"\0\0"
    option = LoadOption.ACTIVE.to_bytes(4, "little") + len(path).to_bytes(2, "little") + name + path
    return [*variables, _variable("Boot0000", option), _variable("BootNext", bytes(2))]


def _variable(name: str, data: bytes) -> Variable:
    return Variable(name, _GLOBAL, _PERSISTENT, data)


def _is_booted(option: bytes) -> bool:
    attributes = LoadOption(int.from_bytes(option[:4], "little") & 0x1F01)
    return LoadOption.ACTIVE in attributes and not attributes & LoadOption.CATEGORY


def _has_unbooted_shell(code: FirmwareImage) -> bool:
    files = {file.guid for volume in code.code_volumes for file in read_volume(code.data, volume).all_files()}
    return {SHELL_FILE, _BOOT_MENU_FILE} <= files
