"""A machine, put together in named stages (docs/design/machine.md)."""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import TYPE_CHECKING

from casemate.errors import InternalError
from casemate.host.clock import GuestClock
from casemate.machine.console import Console
from casemate.machine.devices import Controls
from casemate.machine.firmware import close_firmware, open_firmware
from casemate.machine.outcome import Ending
from casemate.machine.platform import Platform
from casemate.machine.recorder import Recorder
from casemate.machine.run_state import RunState
from casemate.machine.spec import MachineSpec
from casemate.machine.vcpus import Vcpus
from casemate.memory.protection import OnWrite, choose

if TYPE_CHECKING:
    from casemate.host.hypervisor import Hypervisor
    from casemate.linux.direct_boot import DirectBoot


class Stage(IntEnum):
    """How far a machine has been put together."""

    NEW = 0
    CREATED = 1
    MEMORY_REGISTERED = 2
    FIRMWARE_PLACED = 3
    READY = 4


class Machine:
    """One guest: its ``platform``, its ``vcpus`` and the ``state`` of its run.

    ``assemble`` goes through the stages; a launch may step in between them. Raises SpecError, ImageError,
    UnsupportedError or HostError while it is put together; what was opened until then is given back. Use as a
    context manager, or call ``close``.
    """

    def __init__(
        self,
        spec: MachineSpec,
        hypervisor: Hypervisor,
        clock: GuestClock,
        console: Console,
        recorder: Recorder,
    ) -> None:
        self.spec = spec
        self.console = console
        self.recorder = recorder
        recorder.counts_probes = spec.bios is not None and spec.on_write is None
        self.host_name = hypervisor.name
        self.host_era = hypervisor.era
        self.stage = Stage.NEW
        self.state = RunState(allows_one_write=spec.on_write is OnWrite.ALLOW_ONCE)
        self.linux = spec.linux or (_lay_out_linux(spec) if spec.is_direct else None)
        self.firmware = open_firmware(spec, self.linux)
        try:
            self.vm = hypervisor.create_vm(spec.kind, spec.sev)
        except BaseException:
            close_firmware(self.firmware)
            raise
        self._platform: Platform | None = None
        try:
            self._create(clock)
        except BaseException:
            self.close()
            raise

    def _create(self, clock: GuestClock) -> None:
        spec, state, lock = self.spec, self.state, threading.RLock()
        protection = choose(
            spec.kind,
            flash=spec.in_flash,
            capabilities=self.vm.capabilities,
            requested=spec.protection,
            on_write=spec.on_write,
        )
        controls = Controls(
            power_off=lambda: state.end(Ending.POWER_OFF),
            reset=state.request_reset,
            stop=lambda: state.end(Ending.EXIT_PORT),
        )
        self._platform = Platform(
            spec, self.vm, protection, clock, self.console, self.recorder, controls, lock
        )
        self.vcpus = Vcpus(
            self.vm, self.platform.bus, self.platform.interrupts, spec.vcpus, state, lock, self.host_name
        )
        self.vcpus.gate.reset = self.reset
        state.on_change = self.vcpus.interrupt
        self.console.connect(
            self._type,
            lambda: state.end(Ending.UNTIL),
            self._panicked,
            lambda reason: state.end(Ending.GAVE_UP, reason),
            lambda: state.end(Ending.LEFT, "the guest waits at its prompt, and its input has ended"),
        )
        self.stage = Stage.CREATED

    @property
    def platform(self) -> Platform:
        """Memory and devices."""
        if self._platform is None:
            raise InternalError("the machine has no platform yet")
        return self._platform

    @property
    def warnings(self) -> list[str]:
        """What the user should know about how the guest is protected."""
        warning = self.platform.protection.warning
        return [warning] if warning else []

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def assemble(self) -> None:
        """All stages in order."""
        self.register_memory()
        self.place_firmware()
        self.ready()

    def register_memory(self) -> None:
        """Allocate RAM and place it around the holes of a PC."""
        self._advance(Stage.MEMORY_REGISTERED)
        self.platform.register_memory()

    def place_firmware(self) -> None:
        """Flash or ``--bios``; or a kernel in RAM, and its entry code where firmware would be."""
        self._advance(Stage.FIRMWARE_PLACED)
        self.platform.place_firmware(self.firmware)
        if self.linux is not None:
            self.platform.place_linux(self.linux, self.vcpus.all[0])

    def ready(self) -> None:
        """The vCPU stands at the reset vector."""
        self._advance(Stage.READY)

    def reset(self) -> None:
        """A platform reset, while all vCPUs are parked: RAM and flash keep their contents.

        It ends the run of a guest with protected state, and of a kernel that no firmware would load again.
        """
        self.state.reset_wanted = False
        if self.spec.kernel is not None and (reason := self.console.panic_reason):
            self._panicked(reason)
        elif self.vm.capabilities.has_protected_state:
            detail = "the guest asked for a reset, which its protected state does not survive; launch it anew"
            self.state.end(Ending.RESET, detail)
        elif self.linux is not None:
            detail = "the guest asked for a reset, and there is no firmware to start its kernel again"
            self.state.end(Ending.RESET, detail)
        else:
            self.state.resets += 1
            self.platform.reset()
            self.vcpus.reset()
            self.state.on_reset()

    def close(self) -> None:
        """Give everything back; variables reach the disk. Raises HostError if the disk refuses."""
        self.vm.close()
        close_firmware(self.firmware)
        if self._platform is not None:
            self._platform.close()

    def _type(self, data: bytes) -> None:
        self.platform.devices.serial.feed(data)
        self.vcpus.all[0].wake()

    def _panicked(self, reason: str) -> None:
        self.state.end(Ending.KERNEL_PANIC, f"the kernel gave up: {reason}")

    def _advance(self, stage: Stage) -> None:
        if stage != self.stage + 1:
            raise InternalError(f"machine stage {stage.name} does not follow {self.stage.name}")
        self.stage = stage


def _lay_out_linux(spec: MachineSpec) -> DirectBoot:
    from casemate.machine.direct_kernel import lay_out_linux

    return lay_out_linux(spec, None)
