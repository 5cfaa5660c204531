"""The commands, as one table (QEMU qapi/run-state.json, machine.json, misc.json, control.json)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from casemate.qmp import sev_commands as sev
from casemate.qmp.guest_control import GuestControl
from casemate.qmp.protocol import Command, Parameter, text, uint64


def make_commands(guest: GuestControl) -> tuple[Command, ...]:
    """Those about this guest; what every conversation has is in ``protocol``."""
    secret = (Parameter("packet-header", text), Parameter("secret", text), Parameter("gpa", uint64, True))
    return (
        Command("query-status", lambda: _status(guest)),
        Command("query-cpus-fast", lambda: _vcpus(guest)),
        Command("query-kvm", lambda: {"enabled": guest.machine.host_name == "kvm", "present": True}),
        Command("query-sev", lambda: sev.query_sev(guest)),
        Command("query-sev-launch-measure", lambda: sev.query_measurement(guest)),
        Command("query-sev-capabilities", lambda: sev.query_capabilities(guest.machine.host_name)),
        Command("sev-inject-launch-secret", lambda *given: sev.inject(guest, *given), secret),
        Command("cont", _nothing_after(guest.cont)),
        Command("stop", _nothing_after(guest.stop)),
        Command("system_reset", _nothing_after(guest.reset)),
        Command("quit", _nothing_after(guest.quit)),
    )


def _nothing_after(act: Callable[[], None]) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        act()
        return {}

    return run


def _status(guest: GuestControl) -> dict[str, Any]:
    status = guest.status()
    return {"status": status, "singlestep": False, "running": status == "running"}


def _vcpus(guest: GuestControl) -> list[dict[str, Any]]:
    machine = guest.machine
    where = "modelled" if machine.host_name == "model" else "machine"
    return [
        {
            "cpu-index": number,
            "qom-path": f"/{where}/vcpu[{number}]",
            # Until the run begins, the process's first thread does what there is to do.
            "thread-id": machine.vcpus.thread_ids.get(number, os.getpid()),
            "target": "x86_64",
            "props": {"socket-id": 0, "core-id": number, "thread-id": 0},
        }
        for number in range(len(machine.vcpus))
    ]
