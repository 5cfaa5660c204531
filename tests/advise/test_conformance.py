"""Each rule of ``casemate conform`` against steps that keep it and steps that break it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from casemate.advise.conformance import RULES, Verdict, judge
from casemate.evidence.kvm_trace import KvmStep, KvmTrace, StepKind, read_copy

MIB = 1 << 20
RAM_HVA, FLASH_HVA = 0x7F00_0000_0000, 0x7F10_0000_0000
ASKED = KvmStep(StepKind.CAPABILITY, "KVM_CAP_READONLY_MEM", value=0)
RAM = KvmStep(StepKind.SLOT, slot=0, gpa=0, hva=RAM_HVA, size=16 * MIB, writable=True)
FLASH = KvmStep(StepKind.SLOT, slot=1, gpa=(1 << 32) - MIB, hva=FLASH_HVA, size=MIB, writable=False)
GONE = KvmStep(StepKind.SLOT, slot=1)
LIFTED = KvmStep(StepKind.MAPPING, hva=FLASH_HVA, size=MIB, writable=True)
ARMED = LIFTED._replace(writable=False)
RUN = KvmStep(StepKind.RUN)
FAULT = KvmStep(StepKind.FAULT, errno=14)


def command(name: str, hva: int = 0, size: int = 0) -> KvmStep:
    return KvmStep(StepKind.COMMAND, f"KVM_SEV_{name}", hva=hva, size=size, writable=True if size else None)


INIT, START = command("INIT2"), command("LAUNCH_START")
UPDATE = command("LAUNCH_UPDATE_DATA", hva=FLASH_HVA, size=MIB)
HASHES = command("LAUNCH_UPDATE_DATA", hva=RAM_HVA + 0xCC00, size=176)
VMSA, MEASURE, FINISH = command("LAUNCH_UPDATE_VMSA"), command("LAUNCH_MEASURE"), command("LAUNCH_FINISH")
SECRET = command("LAUNCH_SECRET", hva=RAM_HVA + 0xC000, size=64)
WHOLE = [
    *(ASKED, INIT, START, RAM, FLASH, LIFTED, UPDATE, ARMED, HASHES, VMSA, MEASURE, SECRET, FINISH, RUN),
    *(GONE, LIFTED, RUN, ARMED, FLASH, RUN),
]
"""A SEV-ES launch from flash with kernel hashes and a secret, and a flash command, as the mail wants them."""


def broken(steps: list[KvmStep], *, is_bios: bool = False) -> set[str]:
    return {each.rule.id for each in judge(steps, is_bios=is_bios) if each.verdict is Verdict.BROKEN}


def without(*steps: KvmStep) -> list[KvmStep]:
    """The launch without the first of each."""
    left = list(WHOLE)
    for step in steps:
        left.remove(step)
    return left


def instead(old: KvmStep, *new: KvmStep) -> list[KvmStep]:
    at = WHOLE.index(old)
    return [*WHOLE[:at], *new, *WHOLE[at + 1 :]]


def test_launch_of_the_mail_keeps_every_rule() -> None:
    assert broken(WHOLE) == set()


ROM = FLASH._replace(readonly=True)


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        ("capability-of-vm", [ASKED._replace(of_vm=False), RAM, ROM, RUN]),
        ("readonly-where-offered", [ASKED, RAM, ROM._replace(errno=22), RUN]),
        ("slot-changed-by-deletion", [RAM, RAM._replace(size=32 * MIB, errno=22), RUN]),
        ("slot-changed-by-deletion", [ASKED._replace(value=1), FLASH, ROM, RUN]),
        ("launch-order", instead(START, UPDATE, START)),
        ("launch-order", without(INIT)),
        ("lifted-for-itself", [INIT, START, RAM, FLASH, LIFTED, ARMED]),
        ("writable-without-slot", [*WHOLE, GONE, RUN]),
        ("writable-without-slot", [*WHOLE, GONE]),
        ("launch-order", without(FINISH)),
        ("launch-order", [*WHOLE, UPDATE]),
        ("update-writable", instead(UPDATE, UPDATE._replace(writable=False, errno=12))),
        ("update-writable", instead(SECRET, SECRET._replace(writable=False, errno=12))),
        (
            "update-writable",
            instead(INIT, INIT, KvmStep(StepKind.REGION, hva=FLASH_HVA, size=MIB, writable=False)),
        ),
        ("vmsa-once", instead(VMSA, VMSA, VMSA._replace(errno=22))),
        ("secret-after-measure", instead(VMSA, SECRET, VMSA)),
        ("flash-protected", without(ARMED)),
        ("flash-protected", [RAM, FLASH._replace(writable=True), RUN]),
        ("flash-protected", [*WHOLE[: WHOLE.index(RUN) + 1], LIFTED, RUN]),
        ("lifted-for-itself", instead(UPDATE, UPDATE, HASHES)),
        ("ram-never-armed", instead(HASHES, HASHES, ARMED._replace(hva=RAM_HVA + 0xC000, size=0x1000))),
        ("whole-slot", instead(ARMED, ARMED._replace(size=MIB // 2))),
        ("whole-slot", instead(ARMED, ARMED._replace(hva=FLASH_HVA - 1, size=MIB + 1))),
        ("fault-is-final", [*WHOLE, FAULT, RUN]),
    ],
)
def test_each_rule_is_broken_by_what_breaks_it(rule: str, steps: list[KvmStep]) -> None:
    assert rule in broken(steps)


def test_firmware_in_ram_is_never_to_be_protected() -> None:
    steps = [ASKED, INIT, START, RAM, FLASH, VMSA, MEASURE, FINISH, RUN]
    assert broken(steps, is_bios=True) == {"bios-never-armed"}
    assert (
        broken([FLASH._replace(writable=True) if step is FLASH else step for step in steps], is_bios=True)
        == set()
    )


def test_fault_may_be_answered_by_lifting_the_protection() -> None:
    assert "fault-is-final" not in broken([*WHOLE, FAULT, LIFTED, RUN])


def test_second_address_of_flash_is_flash() -> None:
    alias = FLASH._replace(slot=2, gpa=0xE0000, hva=FLASH_HVA + MIB - 0x20000, size=0x20000)
    first_run = WHOLE.index(RUN) + 1
    assert broken(instead(FLASH, FLASH, alias)[: first_run + 1]) == set()


def test_plain_guests_with_readonly_slots_keep_the_rules() -> None:
    assert broken([ASKED._replace(value=1), RAM, ROM, RUN, GONE, LIFTED, RUN, ROM, RUN]) == set()


def test_steps_survive_json_and_runs_in_a_row_are_one() -> None:
    trace = KvmTrace()
    for step in (RAM, RUN, RUN, FAULT, RUN):
        trace.note(KvmStep.from_json(step.to_json()))
    assert trace.steps == [RAM, RUN, FAULT, RUN]


def test_steps_of_a_process_that_died_are_those_that_it_copied() -> None:
    copy = io.StringIO()
    trace = KvmTrace(copy=copy)
    for steps in ([ASKED], [ASKED, RAM, RUN]):
        trace.begin()
        for step in steps:
            trace.note(step)
    assert [each.steps for each in read_copy(copy.getvalue().splitlines())] == [[ASKED], [ASKED, RAM, RUN]]


def test_guide_has_every_rule() -> None:
    page = (Path(__file__).parents[2] / "docs/guide/conform.md").read_text("utf-8")
    assert [rule.id for rule in RULES if f"`{rule.id}`" not in page] == []
