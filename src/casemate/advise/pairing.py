"""Whether CODE and VARS files belong together (edk2 OvmfPkg/Include/Fdf/OvmfPkgDefines.fdf.inc)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from casemate.advise.inspect import Inspection, Role
from casemate.errors import CasemateError
from casemate.firmware.placement import validate_pair


class Pair(NamedTuple):
    """Two files as flash units 0 and 1, and why they cannot be that (None if they can)."""

    code: str
    variables: str
    fault: str | None


def check_pairs(inspections: Sequence[Inspection]) -> tuple[Pair, ...]:
    """Every variable store with the code file that stands before it, or else with the first one after."""
    pairs = []
    codes = [
        index for index, inspection in enumerate(inspections) if inspection.role in (Role.CODE, Role.COMBINED)
    ]
    for index, inspection in enumerate(inspections):
        if inspection.role is Role.VARIABLES and codes:
            before = [code for code in codes if code < index]
            pairs.append(_check(inspections[before[-1] if before else codes[0]], inspection))
    return tuple(pairs)


def _check(code: Inspection, variables: Inspection) -> Pair:
    fault = None
    try:
        validate_pair(code.image, variables.image)
    except CasemateError as error:
        fault = str(error)
    return Pair(code.image.name, variables.image.name, fault)
