"""What a specification says without opening anything."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from casemate.abi.guest_kind import GuestKind
from casemate.devices.flash.sync import Sync
from casemate.errors import SpecError
from casemate.machine.spec import MachineSpec
from casemate.memory.protection import OnWrite

CODE, VARIABLES = Path("code.fd"), Path("vars.fd")


@pytest.mark.parametrize("kind", GuestKind)
def test_commands_of_plain_guests_alone_may_be_late(kind: GuestKind) -> None:
    spec = MachineSpec(code=CODE, variables=VARIABLES, kind=kind)
    assert spec.allows_coalesced_commands(1) is (kind is GuestKind.PLAIN)
    assert not spec.allows_coalesced_commands(0)


@pytest.mark.parametrize("sync", Sync)
@pytest.mark.parametrize("on_write", [None, *OnWrite])
def test_commands_are_not_late_where_each_one_matters(sync: Sync, on_write: OnWrite | None) -> None:
    spec = MachineSpec(code=CODE, variables=VARIABLES, sync=sync, on_write=on_write)
    each_one_matters = sync is Sync.ALWAYS or on_write in (OnWrite.KILL, OnWrite.ALLOW_ONCE)
    assert spec.allows_coalesced_commands(1) is not each_one_matters


def test_a_spec_is_equal_to_what_says_the_same_and_never_changes() -> None:
    spec = MachineSpec(code="code.fd", kind="sev", vcpus=2)
    assert spec == MachineSpec(code=CODE, kind=GuestKind.SEV, vcpus=2)
    assert spec != spec.replace(vcpus=1)
    assert {spec, spec.replace()} == {spec}
    with pytest.raises(AttributeError, match="replace"):
        spec.vcpus = 3
    with pytest.raises(AttributeError):
        del spec.vcpus


def test_another_spec_is_checked_as_every_spec_is() -> None:
    spec = MachineSpec(code=CODE, variables=VARIABLES)
    assert spec.replace(memory=4096 * 256, sync="always").sync is Sync.ALWAYS
    with pytest.raises(SpecError, match="bios"):
        spec.replace(code=None, bios="bios.fd")
    with pytest.raises(SpecError, match="kind 'sgx' is not known"):
        spec.replace(kind="sgx")


def test_a_spec_can_be_sent_to_another_process() -> None:
    spec = MachineSpec(code=CODE, variables=VARIABLES, on_write="drop", fw_cfg=(("opt/a", b"b"),))
    assert pickle.loads(pickle.dumps(spec)) == spec == copy.deepcopy(spec)
