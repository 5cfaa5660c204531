"""The modelled host of a machine; a boot on KVM does not load it (docs/design/model.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from casemate.abi.kernel_eras import NEWEST, find_era
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import Hypervisor
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.machine.spec import MachineSpec


def validate_era(name: str) -> None:
    """Refuse words that name no kernel era. Raises SpecError."""
    find_era(name)


def model_host(
    spec: MachineSpec, era: str = "", platform: Path | None = None
) -> Callable[[GuestClock], Hypervisor]:
    """What makes the modelled host for a guest; its platform's keys are in the folder ``platform``, or new ones."""
    return lambda clock: ModelHypervisor(clock, era=era or NEWEST, platform=platform, cpu=spec.cpu)
