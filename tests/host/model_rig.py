"""A modelled VM for tiny guests (``guest_rig``)."""

from __future__ import annotations

from guest_rig import PROTECTED, RAM_SIZE, Rig, RigBus, ScriptedInterrupts

from casemate.abi.guest_kind import GuestKind
from casemate.guests.entry import Bits
from casemate.host.clock import GuestClock
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.model.vm import ModelVm

__all__ = ["PROTECTED", "RAM_SIZE", "ModelRig", "RigBus", "ScriptedInterrupts"]


class ModelRig(Rig):
    """A ``Rig`` on the modelled host."""

    vm: ModelVm

    def __init__(self, code: bytes | str, bits: Bits = 32, *, interrupts: ScriptedInterrupts | None = None):
        vm = ModelHypervisor(GuestClock()).create_vm(GuestKind.PLAIN)
        super().__init__(code, bits, vm, interrupts)
