"""The launch digest of SEV and SEV-ES guests: SHA-256 over the contents in launch order (AMD 55766, LAUNCH_MEASURE)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from casemate.digest.plan import LaunchPlan, LaunchStep


def predict_digest(plan: LaunchPlan) -> bytes:
    """The digest (32 bytes) that the secure processor arrives at; guest addresses play no part in it."""
    return digest_of_steps(plan.steps)


def digest_of_steps(steps: Iterable[LaunchStep]) -> bytes:
    """The same of steps that are not a plan yet."""
    digest = hashlib.sha256()
    for step in steps:
        digest.update(step.data)
    return digest.digest()
