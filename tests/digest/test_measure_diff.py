"""Pairs of launches, as plans and as traces: the first differing step and its cause."""

from __future__ import annotations

import json

import pytest

from casemate.abi.kernel_eras import find_era
from casemate.digest.diff import Difference, Step, find_difference, parse_launch, steps_of_plan
from casemate.digest.kernel_hashes import KernelHashes
from casemate.digest.plan import LaunchPlan
from casemate.digest.plan_json import plan_to_json
from casemate.digest.plan_sev import plan_sev, plan_sev_es
from casemate.digest.sev_init import SevInit
from casemate.digest.trace import trace_digest
from casemate.errors import SpecError
from casemate.firmware.image import FirmwareImage
from casemate.testing.images import ImageBuilder, variable_store

CODE = ImageBuilder(volume=True).reset_block(0x80B004).hashes(0x80CC00).build()
EPYC, MILAN = 0x800F12, 0xA00F11
HASHES = KernelHashes.of(b"kernel", b"initrd", "quiet")


def image(data: bytes = CODE) -> FirmwareImage:
    return FirmwareImage.from_bytes(data, "code")


def plan(
    vcpus: int = 2,
    signature: int = EPYC,
    hashes: KernelHashes | None = HASHES,
    features: int = 0,
    init: SevInit = SevInit.INIT2,
    data: bytes = CODE,
) -> LaunchPlan:
    return plan_sev_es(image(data), vcpus, signature, hashes, features, init)


def as_trace(launch: LaunchPlan) -> list[Step]:
    """The launch as ``casemate measure --json`` shows it."""
    steps = [
        {"what": step.what, "length": step.length, "sha256": step.sha256.hex()}
        for step in trace_digest(launch)
    ]
    return parse_launch(json.dumps({"steps": steps}))


def difference(first: LaunchPlan, second: LaunchPlan) -> Difference:
    found = find_difference(parse_launch(plan_to_json(first)), parse_launch(plan_to_json(second)))
    assert found is not None
    return found


MOVED = ImageBuilder(volume=True).reset_block(0x80B104).hashes(0x80CC00).build()
CASES = [
    (plan(init=SevInit.LEGACY), 2, "FPU state", True),
    (plan(signature=MILAN), 2, "0x800f12 and 0xa00f11", True),
    (plan(features=0x20), 2, "0x0 and 0x20 (debug-swap)", True),
    (plan(vcpus=3), 4, "2 and 3", True),
    (
        plan(hashes=HASHES._replace(initrd=KernelHashes.of(b"").initrd)),
        1,
        "initrd differs: one launch has none",
        False,
    ),
    (plan(hashes=KernelHashes.of(b"kernel", b"initrd", "quiet ")), 1, "the command line differs", False),
    (plan(hashes=KernelHashes.of(b"Kernel", b"initrd", "quiet")), 1, "the kernel differs", False),
    (plan(hashes=None), 1, "kernel hashes against VMSA of vCPU 0", True),
    (plan(data=b"\1" + CODE[1:]), 0, "offset 0x0", False),
    (plan(data=variable_store(0x20000) + CODE), 0, "variables and code", False),
    (plan(data=MOVED), 0, "offset", False),
    (plan_sev(image(), HASHES), 2, "one guest is SEV-ES", True),
]


@pytest.mark.parametrize(("other", "position", "words", "traces_too"), CASES)
def test_first_difference_and_its_cause_are_named(
    other: LaunchPlan, position: int, words: str, traces_too: bool
) -> None:
    found = difference(plan(), other)
    assert found.position == position
    assert len(found.causes) == 1
    assert words in found.causes[0]
    traced = find_difference(as_trace(plan()), as_trace(other))
    assert traced is not None
    assert traced.position == position
    assert (words in traced.causes[0]) == traces_too


def test_plans_of_two_eras_differ_by_the_fpu_state() -> None:
    launches = [
        plan(init=SevInit.INIT2 if find_era(era).init2_saves_fpu else SevInit.LEGACY)
        for era in ("linux-6.18", "linux-6.1")
    ]
    (cause,) = difference(*launches).causes
    assert cause.startswith("FPU state")
    assert "the first launch used KVM_SEV_INIT2" in cause


def test_other_fields_are_named_as_in_the_manual() -> None:
    steps = steps_of_plan(plan())
    page = bytearray(steps[2].data or b"")
    page[0x268] ^= 1
    changed = [*steps[:2], steps[2]._replace(data=bytes(page), sha256=b"other"), *steps[3:]]
    found = find_difference(steps, changed)
    assert found is not None
    assert found.causes == ("these fields of the save area differ: g_pat",)


def test_reset_address_is_named() -> None:
    left, right = steps_of_plan(plan())[3:], steps_of_plan(plan(data=MOVED))[3:]
    found = find_difference(left, right)
    assert found is not None
    assert "start elsewhere" in found.causes[0]


def test_equal_launches_do_not_differ() -> None:
    assert find_difference(steps_of_plan(plan()), as_trace(plan())) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps": [{}]}', '{"contents": {}}', '{"steps": 1}'])
def test_what_is_no_launch_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"no launch plan|neither a launch plan"):
        parse_launch(text)
