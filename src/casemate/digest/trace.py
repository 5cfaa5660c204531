"""What each step of a launch does to the digest, to find where two launches part (docs/guide/measure.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from casemate.abi.guest_kind import GuestKind
from casemate.digest import digest_snp, mrtd
from casemate.digest.plan import LaunchPlan, LaunchStep, TdxPages
from casemate.digest.steps import SnpPages


class TracedStep(NamedTuple):
    """One step: what, where (None for registers), how many bytes, their SHA-256, and the digest if it ended here.

    ``kind`` is the type of an SNP guest's pages or the operation on a TD's; None elsewhere.
    """

    what: str
    gpa: int | None
    length: int
    sha256: bytes
    running: bytes
    kind: str | None = None


def trace_digest(plan: LaunchPlan, firmware: bytes | None = None) -> list[TracedStep]:
    """All steps in order; the last running value is the launch digest.

    ``firmware`` is an SNP guest's digest after its firmware, where only that is known.
    """

    own: dict[int, bytes] = {}
    traced = []
    for step, running in zip(plan.steps, running_digests(plan, firmware), strict=True):
        if id(step.data) not in own:
            own[id(step.data)] = hashlib.sha256(step.data).digest()
        traced.append(
            TracedStep(step.what, step.gpa, step.size, own[id(step.data)], running, step_kind(step))
        )
    return traced


def step_kind(step: LaunchStep) -> str | None:
    """What else beside address and contents the digest knows of a step."""
    match step:
        case SnpPages():
            return step.page_type.name
        case TdxPages():
            return step.operation.value
        case _:
            return None


def running_digests(plan: LaunchPlan, firmware: bytes | None = None) -> Iterator[bytes]:
    """The digest after each step, by the rules of the plan's kind of guest."""
    if plan.kind is GuestKind.SNP:
        return digest_snp.running_digests(plan, firmware)
    if plan.kind is GuestKind.TDX:
        return mrtd.running_digests(plan)
    return _running_sha256(plan)


def _running_sha256(plan: LaunchPlan) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for step in plan.steps:
        digest.update(step.data)
        yield digest.digest()
