"""The records of a variable store, and how they are written (edk2 MdeModulePkg/Include/Guid/VariableFormat.h)."""

from __future__ import annotations

import struct
from enum import IntFlag

from casemate.firmware import guids
from casemate.records import NamedTuple

START_ID = b"\xaa\x55"
"""Begins each record; the constant 0x55AA, little-endian."""
ALIGNMENT = 4
"""Bytes, from the start of the store; between the end of a record and the next is padding."""

UNWRITTEN = 0xFF
HEADER_VALID = 0x7F
"""The header is whole; name and data are being written."""
ADDED = 0x3F
IN_DELETED_TRANSITION = 0x3E
"""An ADDED record that is about to be replaced."""
DELETED = (0x3D, 0x3C)
LEGAL_STATES = frozenset((UNWRITTEN, HEADER_VALID, ADDED, IN_DELETED_TRANSITION, *DELETED))

_PLAIN = struct.Struct("<2sBxIII16s")
_AUTHENTICATED = struct.Struct("<2sBxIQ16sIII16s")

VENDORS = {
    "global": guids.guid("8be4df61-93ca-11d2-aa0d-00e098032b8c"),
    "security-database": guids.guid("d719b2cb-3d3a-4596-a3bc-dad00e67656f"),
    "shell": guids.guid("158def5a-f656-419c-b027-7a3192c079d2"),
}
"""Names of the vendors that people set variables of."""


class Attributes(IntFlag):
    """Attributes of a variable (UEFI 2.10, 8.2)."""

    NV = 0x01
    BS = 0x02
    RT = 0x04
    HR = 0x08
    AW = 0x10
    AT = 0x20
    APPEND = 0x40


class Variable(NamedTuple):
    """A variable: who it is and what it holds. ``stamp`` is an EFI_TIME; the last two belong to an old scheme."""

    name: str
    guid: bytes
    attributes: int
    data: bytes
    stamp: bytes = bytes(16)
    replay_count: int = 0
    key_index: int = 0

    @property
    def label(self) -> str:
        """Name and vendor for people."""
        return f"{self.name} of {vendor_name(self.guid)}"

    def encode(self, *, authenticated: bool) -> bytes:
        """A whole record, padded to where the next may begin."""
        name = self.name.encode("utf-16-le", "surrogatepass") + b"\0\0"
        sizes = (len(name), len(self.data), self.guid)
        if authenticated:
            fields = (self.attributes, self.replay_count, self.stamp, self.key_index, *sizes)
            header = _AUTHENTICATED.pack(START_ID, ADDED, *fields)
        else:
            header = _PLAIN.pack(START_ID, ADDED, self.attributes, *sizes)
        record = header + name + self.data
        return record.ljust(align(len(record)), b"\xff")


class Record(NamedTuple):
    """A record where it lies: from ``offset`` to ``end``, in bytes from the start of the store, and its state."""

    offset: int
    end: int
    state: int
    variable: Variable


class RecordFault(Exception):
    """What is at an offset is no record; the text says why."""


def vendor_name(guid: bytes) -> str:
    """The name in ``VENDORS``, or the GUID."""
    return next((name for name, known in VENDORS.items() if known == guid), guids.guid_text(guid))


def align(offset: int) -> int:
    """The next offset at which a record may begin."""
    return offset + ALIGNMENT - 1 & -ALIGNMENT


def header_size(authenticated: bool) -> int:
    """Bytes before the name: 60 or 32."""
    return (_AUTHENTICATED if authenticated else _PLAIN).size


def parse_record(store: bytes, offset: int, *, authenticated: bool) -> Record:
    """The record at ``offset`` of a store. Raises RecordFault if sizes, state or name cannot be."""
    layout = _AUTHENTICATED if authenticated else _PLAIN
    if offset + layout.size > len(store):
        raise RecordFault("its header runs over the end of the store")
    fields = layout.unpack_from(store, offset)
    start, state, attributes, name_size, data_size, guid = (*fields[:3], *fields[-3:])
    if start != START_ID:
        raise RecordFault(f"it begins with {start.hex()}, not {START_ID.hex()}")
    if state not in LEGAL_STATES:
        raise RecordFault(f"no record has the state {state:#04x}")
    name_at = offset + layout.size
    data_at, end = name_at + name_size, name_at + name_size + data_size
    if end > len(store):
        raise RecordFault(f"its name of {name_size:#x} and data of {data_size:#x} bytes run over the end")
    if name_size < 4 or name_size % 2:
        raise RecordFault(f"no name has {name_size} bytes")
    name = store[name_at:data_at].decode("utf-16-le", "surrogatepass")
    if state != HEADER_VALID and (name[-1] != "\0" or "\0" in name[:-1]):
        raise RecordFault("its name does not end where it should")
    extra = (fields[4], fields[3], fields[5]) if authenticated else (bytes(16), 0, 0)
    variable = Variable(name.rstrip("\0"), guid, attributes, store[data_at:end], *extra)
    return Record(offset, end, state, variable)
