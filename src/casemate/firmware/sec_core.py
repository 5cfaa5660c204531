"""For which processor mode firmware starts: the machine type of its SEC core (UEFI PI 1.8 vol. 1, 15.2; PE/COFF).

An image whose first module is 32-bit code starts as SEV-ES guest and dies at its first VMGEXIT: edk2's 32-bit libraries
have no such instruction, only a breakpoint in its place.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from casemate.firmware.image import FirmwareImage
from casemate.firmware.volume_header import VolumeHeader

_FILE_HEADER = 24
_SECURITY_CORE = 0x03
_SECTION_HEADER = 4
_PE32, _TE = 0x10, 0x12
_HEAD = 0x200
"""Bytes of an executable that are looked at."""


class Machine(IntEnum):
    """Machine types of PE and TE images."""

    IA32 = 0x014C
    X64 = 0x8664


def sec_machine(image: FirmwareImage) -> Machine | None:
    """What the SEC core is compiled for, or None where none is found or it is for another processor."""
    for volume in image.volumes:
        machine = _in_volume(image.data, volume)
        if machine is not None:
            return machine
    return None


def unfit_for_sev_es(image: FirmwareImage) -> str | None:
    """Why an image cannot start as SEV-ES guest, or None if nothing shows that."""
    if sec_machine(image) is Machine.IA32:
        return "starts in 32-bit code (its SEC core is IA32), which in edk2 has no VMGEXIT, only a breakpoint"
    return None


def _in_volume(data: bytes, volume: VolumeHeader) -> Machine | None:
    offset, end = volume.offset + volume.header_length, min(volume.end, len(data))
    while (offset := volume.offset + (offset - volume.offset + 7 & ~7)) + _FILE_HEADER <= end:
        kind, size = data[offset + 18], int.from_bytes(data[offset + 20 : offset + 23], "little")
        if not _FILE_HEADER <= size <= end - offset:
            return None  # free space, or damage
        if kind == _SECURITY_CORE:
            return _in_file(data, offset + _FILE_HEADER, offset + size)
        offset += size
    return None


def _in_file(data: bytes, start: int, end: int) -> Machine | None:
    offset = start
    while (offset := start + (offset - start + 3 & ~3)) + _SECTION_HEADER <= end:
        size, kind = int.from_bytes(data[offset : offset + 3], "little"), data[offset + 3]
        if not _SECTION_HEADER <= size <= end - offset:
            return None
        if kind in (_PE32, _TE):
            return _machine(data[offset + _SECTION_HEADER : min(offset + size, offset + _HEAD)])
        offset += size
    return None


def _machine(executable: bytes) -> Machine | None:
    if executable[:2] == b"VZ":
        at = 2
    elif executable[:2] == b"MZ" and len(executable) >= 0x40:
        at = struct.unpack_from("<I", executable, 0x3C)[0] + 4
    else:
        return None
    number = int.from_bytes(executable[at : at + 2], "little")
    return Machine(number) if number in set(Machine) else None
