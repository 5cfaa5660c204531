"""Variables as JSON: the document of QEMU's uefi-vars device, which virt-firmware shares (QEMU qapi/uefi.json)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from casemate.errors import ImageError
from casemate.firmware.guids import guid, guid_text
from casemate.firmware.variables import Variable

VERSION = 2
Key = tuple[bytes, str]
"""Vendor and name of a variable."""

_STAMP_SIZE = 16
_DIGEST_SIZES = (0, 32)
_REMEDY = "give what casemate vars export, virt-fw-vars --output-json or QEMU's uefi-vars device wrote"


def is_json(data: bytes) -> bool:
    """Whether a file can only be such a document."""
    return data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


class Document(NamedTuple):
    """What is in such a document: variables, and the digests (SHA-256) of the certificates that signed private ones."""

    variables: list[Variable]
    digests: dict[Key, bytes]


def variables_to_json(variables: Iterable[Variable], digests: Mapping[Key, bytes] | None = None) -> str:
    """One document: name, GUID, attributes, data, and where there are any, time stamp and digest of each."""
    entries = [_to_entry(variable, (digests or {}).get(variable.key, b"")) for variable in variables]
    return json.dumps({"version": VERSION, "variables": entries}, indent=2)


def variables_from_json(text: str, name: str) -> list[Variable]:
    """The variables of such a document. Raises ImageError, with the file's ``name``, if it is none."""
    return parse_document(text, name).variables


def parse_document(text: str, name: str) -> Document:
    """Everything in such a document. Raises ImageError, with the file's ``name``, if it is none."""
    try:
        document = json.loads(text.removeprefix("\ufeff"))
        if document.get("version", VERSION) != VERSION:
            raise ValueError(f"its version is {document['version']!r}, known is {VERSION}")
        entries = [_from_entry(entry) for entry in document["variables"]]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ImageError(name, f"this is no document of variables: {reason}", _REMEDY) from None
    digests = {variable.key: digest for variable, digest in entries if digest}
    return Document([variable for variable, _ in entries], digests)


def _to_entry(variable: Variable, digest: bytes) -> dict[str, Any]:
    entry = {
        "name": variable.name,
        "guid": guid_text(variable.guid),
        "attr": variable.attributes,
        "data": variable.data.hex(),
    }
    for word, value in (("time", variable.stamp), ("digest", digest)):
        if any(value):
            entry[word] = value.hex()
    return entry


def _from_entry(entry: dict[str, Any]) -> tuple[Variable, bytes]:
    vendor = guid(entry["guid"])
    stamp = bytes.fromhex(entry.get("time") or "00" * _STAMP_SIZE)
    digest = bytes.fromhex(entry.get("digest") or "")
    name, attributes = entry["name"], entry["attr"]
    if not isinstance(name, str) or not name or "\0" in name or len(vendor) != 16:
        raise ValueError(f"variable {name!r} has a broken name or GUID")
    if len(stamp) != _STAMP_SIZE or len(digest) not in _DIGEST_SIZES:
        raise ValueError(f"variable {name!r} has a broken time or digest")
    if not isinstance(attributes, int) or isinstance(attributes, bool) or not 0 <= attributes < 1 << 32:
        raise ValueError(f"variable {name!r} has attributes {attributes!r}")
    return Variable(name, vendor, attributes, bytes.fromhex(entry["data"]), stamp), digest
