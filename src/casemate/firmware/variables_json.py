"""Variables as JSON, in the form that python-uefivars and virt-firmware share (virt-firmware efijson.py, version 2)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from casemate.errors import ImageError
from casemate.firmware.guids import guid, guid_text
from casemate.firmware.variables import Variable

VERSION = 2
_STAMP_SIZE = 16


def variables_to_json(variables: Iterable[Variable]) -> str:
    """One document: name, GUID, attributes, data and time stamp of each."""
    entries = [_to_entry(variable) for variable in variables]
    return json.dumps({"version": VERSION, "variables": entries}, indent=2)


def variables_from_json(text: str, name: str) -> list[Variable]:
    """The variables of such a document. Raises ImageError, with the file's ``name``, if it is none."""
    try:
        return [_from_entry(entry) for entry in json.loads(text)["variables"]]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        cause = f"this is no document of variables: {type(error).__name__}: {error}"
        raise ImageError(name, cause, "give what casemate vars export wrote") from None


def _to_entry(variable: Variable) -> dict[str, Any]:
    entry = {
        "name": variable.name,
        "guid": guid_text(variable.guid),
        "attr": variable.attributes,
        "data": variable.data.hex(),
    }
    return entry | ({"time": variable.stamp.hex()} if any(variable.stamp) else {})


def _from_entry(entry: dict[str, Any]) -> Variable:
    vendor = guid(entry["guid"])
    stamp = bytes.fromhex(entry.get("time") or "00" * _STAMP_SIZE)
    name, attributes = str(entry["name"]), int(entry["attr"])
    if len(vendor) != 16 or len(stamp) != _STAMP_SIZE or not name or "\0" in name:
        raise ValueError(f"variable {name!r} has a broken name, GUID or time")
    if not 0 <= attributes < 1 << 32:
        raise ValueError(f"variable {name!r} has attributes {attributes}")
    return Variable(name, vendor, attributes, bytes.fromhex(entry["data"]), stamp)
