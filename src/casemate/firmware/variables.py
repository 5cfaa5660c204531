"""The records of a variable store, and how they are written (edk2 MdeModulePkg/Include/Guid/VariableFormat.h)."""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import NamedTuple

from casemate.firmware import guids

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

_UNWRITTEN_NUMBER = 0xFFFF_FFFF
_PLAIN = struct.Struct("<2sBxIII16s")
_AUTHENTICATED = struct.Struct("<2sBxIQ16sIII16s")

VENDORS = {
    "global": guids.guid("8be4df61-93ca-11d2-aa0d-00e098032b8c"),
    "security-database": guids.guid("d719b2cb-3d3a-4596-a3bc-dad00e67656f"),
    "shell": guids.guid("158def5a-f656-419c-b027-7a3192c079d2"),
}
"""Names of the vendors that people set variables of."""

_SECURITY_VENDORS = frozenset(
    map(
        guids.guid,
        (
            "d719b2cb-3d3a-4596-a3bc-dad00e67656f",  # db, dbx, dbt, dbr
            "605dab50-e046-4300-abb6-3dd810dd8b23",  # shim's MokList, MokListX, MokSBState, SbatLevel
            "f0a30bc7-af08-4556-99c4-001009c93a44",  # edk2's SecureBootEnable
            "c076ec0c-7028-4399-a072-71ee5c448b9f",  # edk2's CustomMode
            "9073e4e0-60ec-4b6e-9903-4c223c260f3c",  # edk2's VendorKeysNv
            "d9bee56e-75dc-49d9-b4d7-b534210f637a",  # edk2's certdb
        ),
    )
)
_SECURITY_NAMES = frozenset(
    (
        *(
            "PK",
            "KEK",
            "SetupMode",
            "AuditMode",
            "DeployedMode",
            "SecureBoot",
            "SignatureSupport",
            "VendorKeys",
        ),
        *(
            "PKDefault",
            "KEKDefault",
            "dbDefault",
            "dbxDefault",
            "dbtDefault",
            "dbrDefault",
            "OsRecoveryOrder",
        ),
    )
)


class Attributes(IntFlag):
    """Attributes of a variable (UEFI 2.10, 8.2)."""

    NV = 0x01
    BS = 0x02
    RT = 0x04
    HR = 0x08
    AW = 0x10
    AT = 0x20
    APPEND = 0x40


ORDINARY = Attributes.NV | Attributes.BS | Attributes.RT
"""Attributes of a variable that any program, the operating system's too, may set: neither signed nor for boot alone."""


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

    @property
    def key(self) -> tuple[bytes, str]:
        """What tells it from other variables."""
        return self.guid, self.name

    @property
    def is_ordinary(self) -> bool:
        """Whether nothing trusts it: it has the attributes ``ORDINARY``, and is none of Secure Boot's."""
        secure = self.guid in _SECURITY_VENDORS or (
            self.guid == VENDORS["global"] and self.name in _SECURITY_NAMES
        )
        return self.attributes == ORDINARY and not secure

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


def next_offset(store: bytes, offset: int, *, authenticated: bool) -> int:
    """Where firmware looks for the record behind the one at ``offset``, whatever that one is worth.

    The header must lie in the store. One whose state, attributes or sizes were never written counts for a header
    alone (edk2 MdeModulePkg/Universal/Variable/RuntimeDxe/VariableParsing.c, GetNextVariablePtr).
    """
    layout = _AUTHENTICATED if authenticated else _PLAIN
    fields = layout.unpack_from(store, offset)
    if fields[1] == UNWRITTEN or _UNWRITTEN_NUMBER in (fields[2], *fields[-3:-1]):
        return align(offset + layout.size)
    return claimed_end(store, offset, authenticated)


def claimed_end(store: bytes, offset: int, authenticated: bool) -> int:
    """Where the record at ``offset`` ends by the sizes that its header claims, start and state left aside."""
    layout = _AUTHENTICATED if authenticated else _PLAIN
    if offset + layout.size > len(store):
        return align(offset + layout.size)
    name_size, data_size = layout.unpack_from(store, offset)[-3:-1]
    return align(offset + layout.size + name_size + data_size)


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
    if _UNWRITTEN_NUMBER in (attributes, name_size, data_size):
        raise RecordFault("its attributes or sizes were never written")
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
