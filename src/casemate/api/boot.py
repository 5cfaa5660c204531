"""Booting a guest as a call (docs/guide/python.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from casemate.machine.boot import Attachments
from casemate.machine.boot import boot as boot_machine
from casemate.machine.host_choice import HostChoice, choose_host
from casemate.machine.machine import Machine
from casemate.machine.outcome import LaunchRecord, Outcome
from casemate.machine.spec import MachineSpec

if TYPE_CHECKING:
    from casemate.api.launcher import Launcher
    from casemate.confidential.preparation import LaunchOptions, PreparedLaunch


def boot(
    spec: MachineSpec,
    launch: LaunchOptions | PreparedLaunch | None = None,
    *,
    host: str | HostChoice = "model",
    until: str | None = None,
    timeout: float | None = None,
    watchdog: float | None = None,
    typed: Sequence[str] = (),
    prompt: str = "Shell> ",
    attachments: Attachments | None = None,
    on_created: Callable[[Machine], None] | None = None,
    on_launched: Callable[[LaunchRecord], None] | None = None,
) -> Outcome:
    """Boot one guest, plain or confidential, and run it until it ends or something ends it.

    ``launch`` says how a confidential guest is launched; plain guests take none. ``host`` is ``model``,
    ``model:linux-6.10`` for another kernel era, ``kvm``, or ``auto`` (KVM if it runs supervisor code at speed). The
    run ends when the guest prints ``until``, after ``timeout`` seconds, after ``watchdog`` seconds of CPU time without
    an access to any device, or by itself. Each text of ``typed`` is typed at a ``prompt``. ``on_created`` gets the
    machine before its launch, ``on_launched`` what the launch showed.

    Raises SpecError, ImageError, UnsupportedError, HostError, FirmwareStatusError, and InsecureError if the launch
    measures something else than it should.
    """
    chosen = choose_host(host, spec) if isinstance(host, str) else host
    launcher = _launcher(spec, launch, chosen)

    def assemble(machine: Machine) -> LaunchRecord | None:
        if on_created:
            on_created(machine)
        if launcher is None:
            machine.assemble()
            return None
        record = launcher.launch(machine)
        if on_launched:
            on_launched(record)
        return record

    return boot_machine(
        launcher.prepared.spec if launcher else spec,
        until=until,
        timeout=timeout,
        watchdog=watchdog,
        typed=typed,
        prompt=prompt,
        attachments=attachments,
        hypervisor=chosen.make,
        host_why=chosen.why,
        assemble=assemble,
    )


def _launcher(
    spec: MachineSpec, launch: LaunchOptions | PreparedLaunch | None, chosen: HostChoice
) -> Launcher | None:
    if launch is None and not spec.kind.is_confidential:
        return None
    from casemate.api.launcher import make_launcher

    return make_launcher(spec, launch, chosen)
