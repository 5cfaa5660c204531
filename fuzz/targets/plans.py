"""Damaged launch plans and traces, and what is computed from those that are read (docs/guide/measure.md)."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.snp import SnpPageType
from casemate.address import Gpa
from casemate.digest.diff import find_difference, parse_launch, steps_of_plan
from casemate.digest.plan import LaunchPlan, LaunchStep, TdxOperation, TdxPages
from casemate.digest.plan_json import plan_from_json, plan_to_json
from casemate.digest.steps import SnpPages, UpdateData, UpdateVmsa
from casemate.digest.trace import running_digests, trace_digest
from fuzz.edits import EDITS, JSON_WORDS, damaged
from fuzz.target import Target, quick, refusals

PAGE = bytes(range(256)) * 16
NAMES = (
    b'"update-data"',
    b'"update-vmsa"',
    b'"snp-pages"',
    b'"tdx-pages"',
    b'"NORMAL"',
    b'"VMSA"',
    b'"add"',
    b'"sev"',
)
STEPS: dict[GuestKind, tuple[LaunchStep, ...]] = {
    GuestKind.SEV: (UpdateData("firmware", Gpa(0xFFFFF000), PAGE),),
    GuestKind.SEV_ES: (UpdateData("firmware", Gpa(0xFFFFF000), PAGE), UpdateVmsa(0, PAGE)),
    GuestKind.SNP: (
        SnpPages("firmware", Gpa(0xFFFFF000), 0x1000, SnpPageType.NORMAL, PAGE),
        SnpPages("zero", Gpa(0x1000), 0x3000, SnpPageType.ZERO),
        UpdateVmsa(0, PAGE),
    ),
    GuestKind.TDX: (
        TdxPages("firmware", Gpa(0xFFFFF000), 0x1000, TdxOperation.ADD_EXTEND, PAGE),
        TdxPages("memory", Gpa(0x1000), 0x2000, TdxOperation.ADD),
    ),
}


@functools.cache
def sound(kind: GuestKind, *, is_trace: bool) -> bytes:
    """A plan, or the trace of its digest, as one document."""
    plan = LaunchPlan(kind, STEPS[kind])
    if not is_trace:
        return plan_to_json(plan).encode()
    rows = [
        {
            "what": step.what,
            "length": step.length,
            "sha256": step.sha256.hex(),
            "gpa": None,
            "kind": step.kind,
        }
        for step in trace_digest(plan)
    ]
    return json.dumps({"steps": rows}).encode()


@quick(300)
@given(st.sampled_from(sorted(STEPS)), st.sampled_from(sorted(GuestKind)), st.booleans(), EDITS)
def check(kind: GuestKind, claimed: GuestKind, is_trace: bool, edits: Sequence[int]) -> None:
    """It is refused, or has a digest, a trace and a difference from the sound one."""
    whole = sound(kind, is_trace=is_trace)
    if edits[0] & 1:
        whole = whole.replace(f'"kind": "{kind}"'.encode(), f'"kind": "{claimed}"'.encode())
    head = [(0, 700 if not is_trace else len(whole))]
    text = damaged(whole, edits, (*JSON_WORDS, *NAMES), head).decode("utf-8", "replace")
    with refusals():
        find_difference(parse_launch(text), steps_of_plan(LaunchPlan(kind, STEPS[kind])))
    with refusals():
        plan = plan_from_json(text)
        *_, _digest = running_digests(plan) if plan.steps else (b"",)
        trace_digest(plan)
        plan_from_json(plan_to_json(plan))


TARGET = Target("plans", "launch plans and traces for measure, verify and diff", check)
