"""The launch digest of SEV and SEV-ES guests: SHA-256 over the contents in launch order (AMD 55766, LAUNCH_MEASURE)."""

from __future__ import annotations

import hashlib

from casemate.measure.plan import LaunchPlan


def predict_digest(plan: LaunchPlan) -> bytes:
    """The digest (32 bytes) that the secure processor arrives at; guest addresses play no part in it."""
    digest = hashlib.sha256()
    for step in plan.steps:
        digest.update(step.data)
    return digest.digest()
