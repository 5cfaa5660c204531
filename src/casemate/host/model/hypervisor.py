"""A KVM host in software, without privilege or special CPU; what it shows is modelled (docs/design/model.md)."""

from __future__ import annotations

from casemate.errors import UnsupportedError
from casemate.host.clock import GuestClock
from casemate.host.guest_kind import GuestKind
from casemate.host.model.vm import ModelVm


class ModelHypervisor:
    """Makes modelled VMs. ``fast=False`` keeps the CPU to the engine's public API."""

    name = "model"

    def __init__(self, clock: GuestClock, *, fast: bool = True) -> None:
        self._clock = clock
        self._fast = fast

    def create_vm(self, kind: GuestKind) -> ModelVm:
        """A VM with one vCPU. Raises UnsupportedError for kinds that are not modelled."""
        if kind is not GuestKind.PLAIN:
            raise UnsupportedError(f"the modelled host does not run {kind} guests", "use a plain guest")
        return ModelVm(self._clock, fast=self._fast)
