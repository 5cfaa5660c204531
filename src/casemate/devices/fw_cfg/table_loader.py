"""The script by which firmware places and links tables out of fw_cfg (QEMU hw/acpi/bios-linker-loader.c)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

from casemate.devices.fw_cfg.keys import FILE_NAME_SIZE

SCRIPT_FILE = "etc/table-loader"
_COMMAND_SIZE = 128
_NAME = f"{FILE_NAME_SIZE}s"


class Command(IntEnum):
    """First word of an entry of 128 bytes."""

    ALLOCATE = 1
    ADD_POINTER = 2
    ADD_CHECKSUM = 3


class Zone(IntEnum):
    """Where firmware places a file."""

    HIGH = 1
    FSEG = 2
    """Where an operating system without EFI looks for the RSDP."""


def loader_script(
    file: str, pointers: Iterable[tuple[int, int]], checksums: Iterable[tuple[int, int, int]], alignment: int
) -> bytes:
    """Place one ``file``, then add its address to each pointer (offset and size in bytes) in it, then complete each
    checksum (its offset; start and length of what it is over)."""
    name = file.encode()
    entries = [struct.pack(f"<I{_NAME}IB", Command.ALLOCATE, name, alignment, Zone.FSEG)]
    entries += [
        struct.pack(f"<I{_NAME}{_NAME}IB", Command.ADD_POINTER, name, name, at, size) for at, size in pointers
    ]
    entries += [
        struct.pack(f"<I{_NAME}III", Command.ADD_CHECKSUM, name, at, start, length)
        for at, start, length in checksums
    ]
    return b"".join(entry.ljust(_COMMAND_SIZE, b"\0") for entry in entries)
