"""Boot a machine from its specification to an outcome: the main job as one call (docs/guide/boot.md)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from casemate.host.clock import NANOSECONDS, GuestClock
from casemate.machine.console import Console
from casemate.machine.machine import Machine
from casemate.machine.outcome import LaunchRecord, Outcome
from casemate.machine.recorder import Recorder
from casemate.machine.run_loop import run, signals_end
from casemate.machine.spec import MachineSpec

if TYPE_CHECKING:
    from casemate.host.hypervisor import Hypervisor

_IDLE_ALLOWANCE_SECONDS = 60


class Attachments:
    """Who watches and talks to the guest from outside; the callbacks run on the vCPU's thread.

    - ``output`` takes what the guest prints on its serial port, ``debug_output`` what it writes to its debug port.
    - ``on_phase`` hears of firmware phases as they are reached; ``on_start`` gets the machine before it runs.
    - ``confine`` gives up what the process does not need for the run, once all is open; what it returns is
      ``host.sandbox``.
    - ``on_close`` is called before the machine is given back, however it ended.
    - ``wait`` is what the caller's thread does meanwhile, called again and again with the end's event, and seconds.
    - ``real_time``: idle time is waited for, not skipped, for somebody at the console.
    - ``attending``: somebody may act on a guest that says that it cannot go on; otherwise that ends the run.
    - ``digests``: somebody may read the digests of the firmware in the report; without them they are None.
    - ``ends_at_prompt``: nobody will ever type; with neither ``until`` nor ``typed``, the first prompt ends the run.
    """

    def __init__(
        self,
        output: Callable[[bytes], None] | None = None,
        debug_output: Callable[[bytes], None] | None = None,
        on_phase: Callable[[str], None] | None = None,
        on_start: Callable[[Machine], None] | None = None,
        confine: Callable[[], dict[str, Any] | None] | None = None,
        on_close: Callable[[], None] | None = None,
        wait: Callable[[threading.Event, float], None] | None = None,
        real_time: bool = False,
        attending: bool = False,
        ends_at_prompt: bool = False,
        digests: bool = True,
    ) -> None:
        self.output, self.debug_output = output, debug_output
        self.on_phase, self.on_start, self.on_close = on_phase, on_start, on_close
        self.confine, self.wait = confine, wait
        self.real_time, self.attending, self.ends_at_prompt = real_time, attending, ends_at_prompt
        self.digests = digests


def boot(
    spec: MachineSpec,
    *,
    until: str | None = None,
    timeout: float | None = None,
    watchdog: float | None = None,
    typed: Sequence[str] = (),
    prompt: str = "Shell> ",
    attachments: Attachments | None = None,
    hypervisor: Callable[[GuestClock], Hypervisor] | None = None,
    host_why: str = "the modelled host needs no privilege and no special CPU",
    assemble: Callable[[Machine], LaunchRecord | None] = Machine.assemble,
) -> Outcome:
    """Boot one guest and run it until ``until`` is printed, ``timeout`` seconds passed, or it ends by itself.

    ``watchdog`` is the seconds of CPU time without an access to any device that are taken for no progress; a sealed
    guest behind read-only slots is watched in any case.

    Each text of ``typed`` is typed at a ``prompt``. ``hypervisor`` makes the host (the model by default), ``host_why``
    says why it was taken, ``assemble`` takes the machine through its stages, with a launch in between if the guest
    needs one. Raises SpecError, ImageError, UnsupportedError or HostError.
    """
    attached = attachments or Attachments()
    clock = GuestClock(0 if attached.real_time else _IDLE_ALLOWANCE_SECONDS * NANOSECONDS)
    recorder = Recorder()
    recorder.on_phase = attached.on_phase
    console = Console(
        recorder,
        until=until,
        typed=typed,
        prompt=prompt,
        output=attached.output,
        debug_output=attached.debug_output,
        on_activity=clock.grant_idle,
        attending=attached.attending or attached.real_time,
        ends_at_prompt=attached.ends_at_prompt,
    )
    host = hypervisor(clock) if hypervisor else _model(clock)
    with Machine(spec, host, clock, console, recorder) as machine:
        try:
            launch = assemble(machine)
            with signals_end(machine):
                facts = {"why": host_why, "sandbox": attached.confine() if attached.confine else None}
                if attached.on_start:
                    attached.on_start(machine)
                return run(machine, timeout, attached.wait, watchdog, launch, facts, attached.digests)
        finally:
            if attached.on_close:
                attached.on_close()


def _model(clock: GuestClock) -> Hypervisor:
    from casemate.host.model.hypervisor import ModelHypervisor

    return ModelHypervisor(clock)
