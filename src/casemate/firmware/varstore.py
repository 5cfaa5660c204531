"""The header of a UEFI variable store (edk2 MdeModulePkg/Include/Guid/VariableFormat.h)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from casemate.firmware import guids
from casemate.firmware.volume_header import VolumeHeader

_HEADER = struct.Struct("<16sIBB")
_FORMATTED = 0x5A
_HEALTHY = 0xFE


class VariableStoreHeader(NamedTuple):
    """The start of a store, right behind the header of its volume."""

    offset: int
    """Bytes from the start of the file."""
    size: int
    """Bytes of the store, header included; what follows in the volume is the spare area for rewriting it."""
    is_authenticated: bool
    """Whether variables carry time stamps and key digests, as secure boot needs."""
    is_formatted: bool
    is_healthy: bool


def parse_variable_store(data: bytes, volume: VolumeHeader) -> VariableStoreHeader | None:
    """The store in ``volume``, or None if its GUID is not one of a variable store."""
    offset = volume.offset + volume.header_length
    if offset + _HEADER.size > len(data):
        return None
    signature, size, layout, state = _HEADER.unpack_from(data, offset)
    if signature not in (guids.VARIABLE_STORE, guids.AUTHENTICATED_VARIABLE_STORE):
        return None
    authenticated = signature == guids.AUTHENTICATED_VARIABLE_STORE
    return VariableStoreHeader(offset, size, authenticated, layout == _FORMATTED, state == _HEALTHY)
