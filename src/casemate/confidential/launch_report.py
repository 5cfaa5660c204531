"""The launch of a guest as the outcome has it (docs/guide/confidential.md, ``launch``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from casemate.abi.sev.commands import GuestState
from casemate.confidential.preparation import PreparedLaunch
from casemate.confidential.traced import TracedCommand


def launch_report(
    prepared: PreparedLaunch, state: GuestState, commands: Iterable[TracedCommand]
) -> dict[str, Any]:
    """What was asked for, what was done, and how far it is."""
    return {
        "state": str(state),
        "vm_type": prepared.setup.sev.vm_type.kernel_name,
        "init": prepared.setup.command.kernel_name,
        "why": prepared.setup.reason,
        "policy": prepared.policy,
        "vcpus": len(prepared.vcpus),
        "digest": prepared.digest.hex(),
        "commands": [command._asdict() for command in commands],
    }
