"""The launch of a confidential guest; plain boots do not load it (docs/design/confidential.md)."""

from __future__ import annotations

from casemate.confidential.preparation import LaunchOptions, PreparedLaunch, prepare
from casemate.confidential.stages import launch as launch_machine
from casemate.host.clock import GuestClock
from casemate.machine.host_choice import HostChoice
from casemate.machine.machine import Machine
from casemate.machine.outcome import LaunchRecord
from casemate.machine.spec import MachineSpec


class Launcher:
    """Takes a machine through a launch that is ``prepared``."""

    def __init__(self, prepared: PreparedLaunch) -> None:
        self.prepared = prepared

    def launch(self, machine: Machine) -> LaunchRecord:
        """All stages of the launch; returns what it showed. Raises InsecureError and what the host refuses."""
        return launch_machine(machine, self.prepared)


def make_launcher(
    spec: MachineSpec, launch: LaunchOptions | PreparedLaunch | None, chosen: HostChoice
) -> Launcher | None:
    """The launch that was asked for, prepared if it is not yet; None for a plain guest. Raises as ``prepare``."""
    if isinstance(launch, PreparedLaunch):
        return Launcher(launch)
    if not spec.kind.is_confidential:
        return None
    return Launcher(prepare(spec, launch or LaunchOptions(), chosen.make(GuestClock())))
