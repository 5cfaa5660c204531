"""A confidential launch as a value: the ordered steps that are measured (AMD 55766 SEV API 0.24, chapter 6).

Predicting the digest, executing the launch and modelling the secure processor all read this one list.
"""

from __future__ import annotations

import hashlib

from casemate.address import Gpa
from casemate.errors import SpecError
from casemate.host.guest_kind import GuestKind
from casemate.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

FORMAT = 1
"""Version of the JSON form."""


class UpdateData(NamedTuple):
    """LAUNCH_UPDATE_DATA: encrypt ``data`` at ``gpa`` and extend the digest by it; ``what`` names it for people."""

    what: str
    gpa: Gpa
    data: bytes

    def __repr__(self) -> str:
        return f"UpdateData({self.what!r}, {self.gpa:#x}, {len(self.data)} bytes)"


class UpdateVmsa(NamedTuple):
    """LAUNCH_UPDATE_VMSA: encrypt the registers of one vCPU; ``data`` is its save area, a whole page."""

    vcpu: int
    data: bytes

    def __repr__(self) -> str:
        return f"UpdateVmsa({self.vcpu}, {len(self.data)} bytes)"

    @property
    def what(self) -> str:
        """The step's name for people."""
        return f"VMSA of vCPU {self.vcpu}"


LaunchStep = UpdateData | UpdateVmsa


class LaunchPlan(NamedTuple):
    """The steps in their order, for a guest of ``kind``."""

    kind: GuestKind
    steps: tuple[LaunchStep, ...]

    def to_json(self) -> str:
        """The plan as one JSON document; each distinct content is in it once, under its SHA-256."""
        import json
        from base64 import b64encode

        contents: dict[str, str] = {}
        digests: dict[bytes, str] = {}
        steps = []
        for step in self.steps:
            digest = digests.get(step.data)
            if digest is None:
                digest = digests[step.data] = hashlib.sha256(step.data).hexdigest()
                contents[digest] = b64encode(step.data).decode()
            steps.append(_step_to_json(step, digest))
        document = {"format": FORMAT, "kind": self.kind.value, "steps": steps, "contents": contents}
        return json.dumps(document, indent=1)

    @classmethod
    def from_json(cls, text: str) -> LaunchPlan:
        """Read ``to_json``'s document. Raises SpecError if it is not one, or a content is not what its key says."""
        import json

        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise SpecError(f"launch plan of format {document['format']}, not {FORMAT}", "write it anew")
            contents = {key: _content(key, value) for key, value in document["contents"].items()}
            steps = tuple(_step_from_json(step, contents) for step in document["steps"])
            return cls(GuestKind(document["kind"]), steps)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            cause = f"this is no launch plan: {type(error).__name__}: {error}"
            raise SpecError(cause, "give a document that LaunchPlan.to_json wrote") from None


def _step_to_json(step: LaunchStep, digest: str) -> dict[str, Any]:
    match step:
        case UpdateData(what, gpa):
            return {"step": "update-data", "what": what, "gpa": f"{gpa:#x}", "sha256": digest}
        case UpdateVmsa(vcpu):
            return {"step": "update-vmsa", "vcpu": vcpu, "sha256": digest}


def _step_from_json(step: dict[str, Any], contents: dict[str, bytes]) -> LaunchStep:
    data = contents[step["sha256"]]
    match step["step"]:
        case "update-data":
            return UpdateData(str(step["what"]), Gpa(int(step["gpa"], 16)), data)
        case "update-vmsa":
            return UpdateVmsa(int(step["vcpu"]), data)
        case unknown:
            raise ValueError(f"unknown step {unknown!r}")


def _content(digest: str, encoded: str) -> bytes:
    from base64 import b64decode

    data = b64decode(encoded, validate=True)
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"content {digest} has another SHA-256")
    return data
