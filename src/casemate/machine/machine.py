"""A machine, put together in named stages (docs/design/machine.md)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from casemate.abi.x86.msr import MTRR_DEF_TYPE
from casemate.address import Gpa
from casemate.devices.bus import Bus, SharedBus
from casemate.devices.flash.cfi import CfiFlash
from casemate.errors import InternalError, UnsupportedError
from casemate.host.clock import GuestClock
from casemate.host.exits import VmExit
from casemate.host.hypervisor import Hypervisor, InterruptController, Vcpu
from casemate.linux.direct_boot import PM_BASE, DirectBoot
from casemate.machine.boards import find_board
from casemate.machine.console import Console
from casemate.machine.devices import MachineDevices
from casemate.machine.direct_kernel import lay_out_linux
from casemate.machine.firmware import FirmwareFile, close_firmware, open_firmware
from casemate.machine.irqchip import make_irqchip
from casemate.machine.outcome import Ending
from casemate.machine.recorder import Recorder
from casemate.machine.spec import MachineSpec
from casemate.machine.standstill import Standstill
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory
from casemate.memory.guest_memory import GuestMemory
from casemate.memory.map import MemoryMap
from casemate.memory.protection import OnWrite, WriteProtection, choose
from casemate.memory.region import Alias, Ram, Rom, RomDevice

_LEGACY_BIOS_SIZE = 128 << 10
_MIB = 1 << 20
_MTRRS_ALL_WRITE_BACK = 1 << 11 | 6


class Stage(IntEnum):
    """How far a machine has been put together."""

    CREATED = 1
    MEMORY_REGISTERED = 2
    FIRMWARE_PLACED = 3
    READY = 4


@dataclass(frozen=True, slots=True)
class FlashUnit:
    """One flash unit: its file, its memory and its command state machine."""

    number: int
    source: FirmwareFile
    memory: FlashMemory
    device: CfiFlash


class Machine:
    """One guest and everything it sees. ``assemble`` goes through the stages; a launch may step in between them.

    Raises SpecError, ImageError, UnsupportedError or HostError while it is put together; what was opened until
    then is given back. Use as a context manager, or call ``close``.
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
        self.clock = clock
        self.console = console
        self.recorder = recorder
        recorder.counts_probes = spec.bios is not None and spec.on_write is None
        self.host_name = hypervisor.name
        self.host_era = hypervisor.era
        self.host_why = ""
        """Why this host was taken, for the report."""
        self.ending: Ending | None = None
        self.ending_detail = ""
        """What to tell about the ending, where whoever ended the run knew more than its name."""
        self.features: list[str] = []
        """Names of what the guest's save area says, for the report."""
        self.launch: dict[str, Any] | None = None
        self.measurement: dict[str, Any] | None = None
        """What the launch showed, for the report; filled in by who launches."""
        self.warnings: list[str] = []
        self.on_memory: Callable[[Backing], None] | None = None
        """Hears of every block of guest memory while it is still writable, before a slot shows it."""
        self.on_reset: Callable[[], None] | None = None
        """Hears of every platform reset, once it is made; on a vCPU's thread."""
        self.on_close: Callable[[], None] | None = None
        """Called before the machine is given back."""
        self.standstill = Standstill(self)
        self.thread_ids: dict[int, int] = {}
        """Which thread of the host runs each vCPU, once the run has begun."""
        self.lock = threading.RLock()
        """Held by the vCPU whose access or fault is being handled, where there are more than one."""
        self.vcpus: list[Vcpu] = []
        self._running = threading.local()
        self.resets = 0
        self.reset_wanted = False
        self.flash: list[FlashUnit] = []
        self.linux = spec.linux or (_lay_out(spec) if spec.is_direct else None)
        self.firmware = open_firmware(spec, self.linux)
        self._backings: list[Backing] = []
        self._allowance = spec.on_write is OnWrite.ALLOW_ONCE
        try:
            self.vm = hypervisor.create_vm(spec.kind, spec.sev)
        except BaseException:
            close_firmware(self.firmware)
            raise
        try:
            self._create()
        except BaseException:
            self.close()
            raise

    def _create(self) -> None:
        # Loaded here, for a kernel takes milliseconds to have a new VM's interrupt controllers on its buses, and the
        # first slot waits for that.

        spec, board = self.spec, find_board(self.spec.machine)
        self.protection = choose(
            spec.kind,
            flash=spec.in_flash,
            capabilities=self.vm.capabilities,
            requested=spec.protection,
            on_write=spec.on_write,
        )
        if self.protection.warning:
            self.warnings.append(self.protection.warning)
        self.map = MemoryMap(self.vm)
        self.bus = Bus(self.map, self.vm, self.recorder)
        self.memory = GuestMemory(self.map, self.vm, self.recorder)
        irqchip = make_irqchip(self.vm, self.clock, None if spec.is_direct else self.recorder, self.lock)
        self.devices = MachineDevices(
            board,
            spec,
            self.bus,
            self.map,
            self.memory,
            self.clock,
            self.recorder,
            self.console,
            irqchip,
            power_off=lambda: self.end(Ending.POWER_OFF),
            reset=self.request_reset,
            stop=lambda: self.end(Ending.EXIT_PORT),
            sealed=self.vm.capabilities.sealed_state,
        )
        self._create_vcpus(irqchip.controller)
        self.console.connect(
            self._type,
            lambda: self.end(Ending.UNTIL),
            self._panicked,
            lambda reason: self.end(Ending.GAVE_UP, reason),
            lambda: self.end(Ending.LEFT, "the guest waits at its prompt, and its input has ended"),
        )
        self.stage = Stage.CREATED

    def _create_vcpus(self, interrupts: InterruptController | None) -> None:
        count, most = self.spec.vcpus, self.vm.capabilities.max_vcpus
        if count > most:
            raise UnsupportedError(
                f"{count} vCPUs: a VM of this host ({self.host_name}) takes {most}",
                f"use --cpus {most}" + (", or --host kvm" if self.host_name == "model" else " or fewer"),
            )
        bus = self.bus if count == 1 else SharedBus(self.bus, self.lock)
        for number in range(count):
            self.vcpus.append(self.vm.create_vcpu(bus, interrupts, number=number, count=count))

    @property
    def vcpu(self) -> Vcpu:
        """The vCPU that the calling thread runs; on threads that run none, the one that starts the guest."""
        found: Vcpu | None = getattr(self._running, "vcpu", None)
        return found or self.vcpus[0]

    def run_vcpu(self, vcpu: Vcpu) -> VmExit:
        """Run a vCPU on this thread, which is its own from now on."""
        self._running.vcpu = vcpu
        return vcpu.run()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def assemble(self) -> Machine:
        """All stages in order."""
        self.register_memory()
        self.place_firmware()
        self.ready()
        return self

    def register_memory(self) -> None:
        """Allocate RAM and place it around the holes of a PC."""
        self._advance(Stage.MEMORY_REGISTERED)
        size = self.spec.memory
        ram = Ram("ram", self._backing("casemate-ram", size))
        for piece in find_board(self.spec.machine).ram(size):
            self.map.add(Alias(piece.name, ram, piece.offset, piece.size), piece.gpa)
        self.map.commit()

    def place_firmware(self) -> None:
        """Flash units, or the ``--bios`` image, below 4 GiB, and the last 128 KiB again below 1 MiB.

        A kernel without firmware goes to RAM, and its entry code to where firmware would be.
        """
        self._advance(Stage.FIRMWARE_PLACED)
        if self.spec.in_flash:
            for number, source in enumerate(self.firmware):
                self._place_unit(number, source)
        else:
            self._place_bios(self.firmware[0])
        self.map.commit()
        if self.linux is not None:
            self._place_linux(self.linux)

    def ready(self) -> None:
        """The vCPU stands at the reset vector."""
        self._advance(Stage.READY)

    def reset(self) -> None:
        """A platform reset: RAM and flash keep their contents.

        It ends the run of a guest with sealed registers, and of a kernel that no firmware would load again.
        """
        self.reset_wanted = False
        if self.spec.kernel is not None and (reason := self.console.panic_reason):
            self._panicked(reason)
            return
        if self.vm.capabilities.sealed_state:
            self.end(
                Ending.RESET,
                "the guest asked for a reset, which its sealed registers do not survive; launch it anew",
            )
            return
        if self.linux is not None:
            self.end(
                Ending.RESET,
                "the guest asked for a reset, and there is no firmware to start its kernel again",
            )
            return
        self.resets += 1
        self.devices.reset()
        for unit in self.flash:
            unit.device.reset()
        for vcpu in self.vcpus:
            vcpu.reset()
        if self.on_reset:
            self.on_reset()

    def _type(self, data: bytes) -> None:
        self.devices.serial.feed(data)
        self.vcpus[0].wake()

    def _panicked(self, reason: str) -> None:
        self.end(Ending.KERNEL_PANIC, f"the kernel gave up: {reason}")

    def request_reset(self) -> None:
        """Reset as soon as all vCPUs stop; called by devices, or from any thread."""
        self.reset_wanted = True
        self.stop_vcpus()
        self.standstill.wake()

    def end(self, ending: Ending, detail: str = "") -> None:
        """End the run; the first reason stays. From any thread."""
        if self.ending is None:
            self.ending, self.ending_detail = ending, detail
        self.stop_vcpus()
        self.standstill.wake()

    def stop_vcpus(self) -> None:
        """Make each vCPU come back to its thread's loop soon."""
        for vcpu in self.vcpus:
            vcpu.stop()

    def unit_at(self, gpa: int | None) -> int | None:
        """Number of the flash unit at ``gpa``."""
        if gpa is None:
            return None
        for unit in self.flash:
            if unit.source.gpa <= gpa < unit.source.gpa + unit.memory.size:
                return unit.number
        return None

    def take_held_page(self) -> Gpa | None:
        """The page of the store that userfaultfd held last, if it held one."""
        pages = [unit.memory.take_held_page() for unit in self.flash]
        return next((page for page in pages if page is not None), None)

    def take_allowance(self) -> bool:
        """Whether this store is the one that ``--on-write allow-once`` lets through."""
        allowed, self._allowance = self._allowance, False
        return allowed

    def close(self) -> None:
        """Give everything back; variables reach the disk. Raises HostError if the disk refuses."""
        if self.on_close:
            self.on_close()
        self.vm.close()
        close_firmware(self.firmware)
        for backing in self._backings:
            backing.close()

    def _advance(self, stage: Stage) -> None:
        if stage != self.stage + 1:
            raise InternalError(f"machine stage {stage.name} does not follow {self.stage.name}")
        self.stage = stage

    def _backing(self, name: str, size: int) -> Backing:
        backing = Backing(name, size)
        self._backings.append(backing)
        if self.on_memory:
            self.on_memory(backing)
        return backing

    def _place_unit(self, number: int, source: FirmwareFile) -> None:
        backing = self._backing(f"casemate-flash{number}", len(source.data))
        backing.writable.view[:] = source.data
        memory = FlashMemory(
            number,
            backing,
            self.protection.protection,
            self.vm,
            self.recorder,
            coalesced=self.spec.allows_late_commands(number),
        )
        device = CfiFlash(number, memory, source.file, self.recorder)
        self.recorder.watch_flash(number, memory.view)
        region = RomDevice(f"flash{number}", backing, device)
        memory.attach(self.map, region, source.gpa)
        self.flash.append(FlashUnit(number, source, memory, device))
        if number == 0:
            self._place_legacy_window(region)

    def _place_bios(self, source: FirmwareFile) -> None:
        backing = self._backing("casemate-bios", len(source.data))
        backing.writable.view[:] = source.data
        writable = self.protection.protection is WriteProtection.WRITABLE
        region = Ram("bios", backing) if writable else Rom("bios", backing)
        self.map.add(region, source.gpa)
        self._place_legacy_window(region)

    def _place_linux(self, linux: DirectBoot) -> None:
        for piece in linux.pieces:
            self.memory.write(piece.gpa, piece.data)
        # What firmware would have set up. Without MTRRs Linux does without PAT, and a SEV-ES guest without itself.
        self.devices.set_up_power_management(PM_BASE)
        self.vcpu.set_msr(MTRR_DEF_TYPE, _MTRRS_ALL_WRITE_BACK)

    def _place_legacy_window(self, region: Ram | Rom | RomDevice) -> None:
        if not self.spec.legacy_window:
            return
        size = min(region.size, _LEGACY_BIOS_SIZE)
        self.map.add(Alias("isa-bios", region, region.size - size, size), Gpa(_MIB - size), priority=1)


def _lay_out(spec: MachineSpec) -> DirectBoot:
    return lay_out_linux(spec, None)
