"""What each step of a launch does to the digest, to find where two launches part (AMD 55766, LAUNCH_UPDATE_DATA)."""

from __future__ import annotations

import hashlib

from casemate.measure.plan import LaunchPlan, UpdateData
from casemate.records import NamedTuple


class TracedStep(NamedTuple):
    """One step: what, where (None for registers), how many bytes, their SHA-256, and the digest if it ended here."""

    what: str
    gpa: int | None
    length: int
    sha256: bytes
    running: bytes


def trace_digest(plan: LaunchPlan) -> list[TracedStep]:
    """All steps in order; the last running value is the launch digest."""
    digest = hashlib.sha256()
    own: dict[bytes, bytes] = {}
    traced = []
    for step in plan.steps:
        digest.update(step.data)
        if step.data not in own:
            own[step.data] = hashlib.sha256(step.data).digest()
        gpa = step.gpa if isinstance(step, UpdateData) else None
        traced.append(TracedStep(step.what, gpa, len(step.data), own[step.data], digest.digest()))
    return traced
