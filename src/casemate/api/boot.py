"""Booting a guest as a call, and finding firmware for it (docs/guide/python.md)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from casemate.abi.guest_kind import GuestKind
from casemate.confidential.preparation import LaunchOptions, PreparedLaunch, prepare, unfit_for_sev_es
from casemate.confidential.stages import launch as launch_machine
from casemate.firmware.descriptors import FirmwarePair, firmware_roots
from casemate.firmware.descriptors import find_firmware as find_pair
from casemate.firmware.image import FirmwareImage
from casemate.host.clock import GuestClock
from casemate.machine.boot import Attachments
from casemate.machine.boot import boot as boot_machine
from casemate.machine.host_choice import HostChoice, choose_host
from casemate.machine.machine import Machine
from casemate.machine.outcome import LaunchRecord, Outcome
from casemate.machine.spec import MachineSpec


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
    prepared: PreparedLaunch | None = None
    if isinstance(launch, PreparedLaunch):
        prepared = launch
    elif spec.kind.is_confidential:
        prepared = prepare(spec, launch or LaunchOptions(), chosen.make(GuestClock()))

    def assemble(machine: Machine) -> LaunchRecord | None:
        if on_created:
            on_created(machine)
        if prepared is None:
            machine.assemble()
            return None
        record = launch_machine(machine, prepared)
        if on_launched:
            on_launched(record)
        return record

    return boot_machine(
        prepared.spec if prepared else spec,
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


def find_firmware(kind: GuestKind | str = GuestKind.PLAIN) -> FirmwarePair:
    """The installed OVMF pair that a guest of this kind can boot: code, and the template of its variables.

    Searches the folders of ``$CASEMATE_FIRMWARE`` first, then the system's. Raises UnsupportedError if there is none.
    """

    def unfit(code: Path) -> str | None:
        return unfit_for_sev_es(FirmwareImage.load(code)) if kind == GuestKind.SEV_ES else None

    return find_pair(firmware_roots(os.environ), unfit)
