"""Rules of ``casemate kvm --fault`` (docs/guide/kvm.md)."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from casemate import native
from casemate.errors import SpecError
from casemate.userkvm.faults import Fault, FaultPlan, parse_fault
from tools.kvm_faults import run


def test_rules_name_an_ioctl_or_a_launch_command() -> None:
    assert parse_fault("KVM_CREATE_VCPU:2=ENOMEM") == Fault("KVM_CREATE_VCPU", 2, errno.ENOMEM)
    assert parse_fault("KVM_SEV_LAUNCH_START:1=fw:0x0b") == Fault("KVM_SEV_LAUNCH_START", 1, errno.EIO, 0xB)


@pytest.mark.parametrize(
    "rule",
    ["KVM_NOTHING:1=EIO", "KVM_RUN", "KVM_RUN:0=EIO", "KVM_RUN:x=EIO", "KVM_RUN:1=NOPE", "KVM_RUN:1=fw:3"],
)
def test_rules_without_sense_are_refused_by_name(rule: str) -> None:
    with pytest.raises(SpecError, match="--fault"):
        parse_fault(rule)


def test_only_the_planned_call_fails() -> None:
    plan = FaultPlan([parse_fault("KVM_RUN:2=EIO")])
    assert [plan.next(call) is not None for call in ("KVM_RUN", "KVM_GET_REGS", "KVM_RUN", "KVM_RUN")] == [
        False,
        False,
        True,
        False,
    ]
    assert plan.injected == {"KVM_RUN:2": 1}


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed")
@pytest.mark.skipif(not native.KVM.exists(), reason="casemate's library for other VMMs was not built")
@pytest.mark.parametrize(
    ("call", "shown"),
    [
        ("KVM_CREATE_VM:1", "exit code 1: -accel kvm: failed to initialize kvm: Invalid argument"),
        ("KVM_CREATE_VCPU:1", "exit code 1: kvm_init_vcpu: kvm_get_vcpu failed (0): Invalid argument"),
        ("KVM_GET_CLOCK:1", "abort: KVM_GET_CLOCK failed: Invalid argument"),
        ("KVM_REGISTER_COALESCED_MMIO:1", "went on"),
    ],
)
def test_qemu_says_in_its_own_words_what_failed(tmp_path: Path, call: str, shown: str) -> None:
    outcome = run(tmp_path, "--fault", f"{call}=EINVAL")
    assert not outcome.is_ours, outcome.errors
    assert outcome.shown == shown
