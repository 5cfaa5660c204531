"""A launch plan as one JSON document, contents and all (docs/guide/measure.md)."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from typing import Any

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.snp import SnpPageType
from casemate.address import FOUR_GIB, Gpa
from casemate.digest.plan import LaunchPlan, LaunchStep, TdxOperation, TdxPages
from casemate.digest.steps import SnpPages, UpdateData, UpdateVmsa
from casemate.errors import SpecError

FORMAT = 1
"""Version of the document."""
_LARGEST_GPA = 1 << 52
_STEPS_OF: dict[GuestKind, tuple[type[LaunchStep], ...]] = {
    GuestKind.SEV: (UpdateData,),
    GuestKind.SEV_ES: (UpdateData, UpdateVmsa),
    GuestKind.SNP: (SnpPages, UpdateVmsa),
    GuestKind.TDX: (TdxPages,),
}


def plan_to_json(plan: LaunchPlan) -> str:
    """The document; each distinct content is in it once, under its SHA-256."""
    contents: dict[str, str] = {}
    digests: dict[bytes, str] = {}
    steps = []
    for step in plan.steps:
        digest = digests.get(step.data)
        if digest is None:
            digest = digests[step.data] = hashlib.sha256(step.data).hexdigest()
            contents[digest] = b64encode(step.data).decode()
        steps.append(_step_to_json(step, digest))
    document = {"format": FORMAT, "kind": plan.kind.value, "steps": steps, "contents": contents}
    return json.dumps(document, indent=1)


def plan_from_json(text: str, name: str = "launch plan") -> LaunchPlan:
    """Read ``plan_to_json``'s document; ``name`` is its file's, for errors.

    Raises SpecError if it is not one, or a content is not what its key says.
    """
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise SpecError(f"{name}: format {document['format']}, not {FORMAT}", "write it anew")
        contents = {key: _content(key, value) for key, value in document["contents"].items()}
        steps = tuple(_step_from_json(step, contents) for step in document["steps"])
        kind = GuestKind(document["kind"])
        _validate(kind, steps)
        return LaunchPlan(kind, steps)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        cause = f"{name}: this is no launch plan ({reason_of(error)})"
        raise SpecError(cause, "give what casemate measure --plan-out wrote") from None


def reason_of(error: Exception) -> str:
    """Why a JSON document is not the expected one, in words."""
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _step_to_json(step: LaunchStep, digest: str) -> dict[str, Any]:
    match step:
        case UpdateData(what, gpa):
            return {"step": "update-data", "what": what, "gpa": f"{gpa:#x}", "sha256": digest}
        case UpdateVmsa(vcpu):
            return {"step": "update-vmsa", "vcpu": vcpu, "sha256": digest}
        case SnpPages(what, gpa, size, page_type):
            pages = {"what": what, "gpa": f"{gpa:#x}", "size": size, "type": page_type.name}
            return {"step": "snp-pages", **pages, "sha256": digest}
        case TdxPages(what, gpa, size, operation):
            pages = {"what": what, "gpa": f"{gpa:#x}", "size": size, "operation": operation.value}
            return {"step": "tdx-pages", **pages, "sha256": digest}


def _step_from_json(step: dict[str, Any], contents: dict[str, bytes]) -> LaunchStep:
    data = contents[step["sha256"]]
    match step["step"]:
        case "update-data":
            return UpdateData(str(step["what"]), Gpa(int(step["gpa"], 16)), data)
        case "update-vmsa":
            return UpdateVmsa(int(step["vcpu"]), data)
        case "snp-pages":
            what, gpa, size = _place_from_json(step)
            return SnpPages(what, gpa, size, SnpPageType[step["type"]], data)
        case "tdx-pages":
            what, gpa, size = _place_from_json(step)
            return TdxPages(what, gpa, size, TdxOperation(step["operation"]), data)
        case unknown:
            raise ValueError(f"unknown step {unknown!r}")


def _place_from_json(step: dict[str, Any]) -> tuple[str, Gpa, int]:
    gpa, size = int(step["gpa"], 16), int(step["size"])
    if not 0 < size <= FOUR_GIB or not 0 <= gpa <= _LARGEST_GPA - size:
        raise ValueError(f"no guest has {size:#x} bytes at {gpa:#x}")
    return str(step["what"]), Gpa(gpa), size


def _validate(kind: GuestKind, steps: tuple[LaunchStep, ...]) -> None:
    for step in steps:
        if not isinstance(step, _STEPS_OF.get(kind, ())):
            raise ValueError(f"{step!r} is no step of a {kind} guest")
    if (size := sum(step.size for step in steps)) > FOUR_GIB:
        raise ValueError(f"{size:#x} bytes are measured in all, more than 4 GiB")


def _content(digest: str, encoded: str) -> bytes:
    data = b64decode(encoded, validate=True)
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"content {digest} has another SHA-256")
    return data
