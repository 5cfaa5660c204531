"""What a specification says without opening anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.abi.guest_kind import GuestKind
from casemate.devices.flash.sync import Sync
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
