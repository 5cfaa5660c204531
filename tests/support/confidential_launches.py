"""Tiny guests launched, watched at every launch command, and run (docs/design/confidential.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kernel_eras import KernelEra
from casemate.abi.sev.commands import GuestState
from casemate.address import Hva
from casemate.confidential.preparation import LaunchOptions, PreparedLaunch, prepare
from casemate.confidential.stages import launch
from casemate.guests.entry import make_image
from casemate.host.clock import GuestClock
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.secure_processor import (
    LaunchMeasurement,
    LaunchSession,
    SecureProcessor,
    SevSetup,
    VcpuReset,
)
from casemate.machine.console import Console
from casemate.machine.machine import Machine
from casemate.machine.outcome import LaunchRecord, Outcome
from casemate.machine.recorder import Recorder
from casemate.machine.run_loop import run
from casemate.machine.spec import MachineSpec
from casemate.memory.backing import Backing
from casemate.testing.images import ImageBuilder

MIB = 1 << 20
UNIT0 = 0xFFFF0000
"""Where a tiny guest in flash, or by --bios, begins."""
UNIT1_SIZE = 0x20000
UNIT1 = UNIT0 - UNIT1_SIZE
HASHES = 0x80CC00
_TABLE_SIZE = 0x80
_RESET_SIZE = 16


def write_guest(folder: Path, payload: bytes, *, hashes: bool = False, name: str = "guest.fd") -> Path:
    """A 64 KiB image that does ``payload``; with a GUIDed table that sets an area for kernel hashes apart."""
    image = bytearray(make_image(payload, 32))
    if hashes:
        table = ImageBuilder(len(image)).reset_block(0x80B004).hashes(HASHES).build()
        image[-_TABLE_SIZE:-_RESET_SIZE] = table[-_TABLE_SIZE:-_RESET_SIZE]
    path = folder / name
    path.write_bytes(image)
    return path


def write_variables(folder: Path) -> Path:
    """A blank file for unit 1; tiny guests look for nothing in it."""
    path = folder / "vars.fd"
    path.write_bytes(b"\xff" * UNIT1_SIZE)
    return path


def write_kernel(folder: Path) -> Path:
    """Enough of a bzImage to be handed over."""
    image = bytearray(4096)
    image[0x1F1] = 4
    image[0x202:0x206] = b"HdrS"
    path = folder / "vmlinuz"
    path.write_bytes(image)
    return path


def sev_es(path: Path, variables: Path | None = None, **more: Any) -> MachineSpec:
    """A SEV-ES guest with its firmware in flash."""
    return MachineSpec(code=path, variables=variables, kind=GuestKind.SEV_ES, memory=16 * MIB, **more)


def sev_es_bios(path: Path, **more: Any) -> MachineSpec:
    """A SEV-ES guest with its firmware in RAM."""
    return MachineSpec(bios=path, kind=GuestKind.SEV_ES, memory=16 * MIB, **more)


DEBUG_SWAP = LaunchOptions(features=("debug-swap",))


@dataclass
class Watcher(SecureProcessor):
    """Passes commands on; ``before`` is called ahead of each one, ``updates`` keeps the bytes that were handed over."""

    inner: SecureProcessor
    before: Callable[[str], None]
    updates: list[bytes] = field(default_factory=list)

    @property
    def version(self) -> tuple[int, int, int]:
        return self.inner.version

    @property
    def state(self) -> GuestState:
        return self.inner.state

    @property
    def pdh(self) -> bytes:
        return self.inner.pdh

    def launch_start(self, policy: int, session: LaunchSession | None) -> None:
        self.before("LAUNCH_START")
        self.inner.launch_start(policy, session)

    def register_region(self, hva: Hva, size: int) -> None:
        self.before("REG_REGION")
        self.inner.register_region(hva, size)

    def launch_update_data(self, hva: Hva, size: int) -> None:
        self.before("LAUNCH_UPDATE_DATA")
        import ctypes

        self.updates.append(ctypes.string_at(hva, size))
        self.inner.launch_update_data(hva, size)

    def launch_update_vmsa(self, vcpus: Sequence[VcpuReset]) -> None:
        self.before("LAUNCH_UPDATE_VMSA")
        self.inner.launch_update_vmsa(vcpus)

    def launch_measure(self) -> LaunchMeasurement:
        self.before("LAUNCH_MEASURE")
        return self.inner.launch_measure()

    def launch_secret(self, header: bytes, hva: Hva, data: bytes) -> None:
        self.before("LAUNCH_SECRET")
        self.inner.launch_secret(header, hva, data)

    def launch_finish(self) -> None:
        self.before("LAUNCH_FINISH")
        self.inner.launch_finish()


class WatchedHost(ModelHypervisor):
    """The modelled host, its secure processor behind a ``Watcher``, which ``watcher`` shows once there is a VM."""

    def __init__(self, clock: GuestClock, before: Callable[[str], None], **options: Any) -> None:
        super().__init__(clock, **options)
        self._before = before
        self.watcher: Watcher | None = None

    def create_vm(self, kind: GuestKind, sev: SevSetup | None = None, **others: Any) -> Any:
        vm = super().create_vm(kind, sev, **others)
        if vm.secure_processor is not None:
            self.watcher = Watcher(vm.secure_processor, self._before)
            vm.secure_processor = self.watcher  # type: ignore[assignment]
        return vm


@dataclass
class Launch:
    """One guest from its specification on; ``at`` is called at every launch command, at READY and at END."""

    spec: MachineSpec
    options: LaunchOptions = field(default_factory=LaunchOptions)
    era: str | KernelEra = "linux-6.18"
    at: Callable[[str, Machine], None] = lambda moment, machine: None
    lock_limit: int | None = None
    moments: list[str] = field(default_factory=list)
    machine: Machine = field(init=False)
    host: WatchedHost = field(init=False)
    prepared: PreparedLaunch | None = None
    record: LaunchRecord | None = None

    def assembled(self) -> Machine:
        """The machine, launched and ready; the caller closes it."""
        clock = GuestClock(10**11)
        recorder = Recorder()
        self.host = WatchedHost(clock, self._reached, era=self.era, lock_limit=self.lock_limit)
        self.spec_launched = self.spec
        if self.spec.kind.is_confidential:
            self.prepared = prepare(self.spec, self.options, self.host)
            self.spec_launched = self.prepared.spec
        self.machine = Machine(self.spec_launched, self.host, clock, Console(recorder), recorder)
        try:
            if self.prepared is None:
                self.machine.assemble()
            else:
                self.record = launch(self.machine, self.prepared)
            self._reached("READY")
        except BaseException:
            self.machine.close()
            raise
        return self.machine

    def run(self) -> Outcome:
        """Launch, run for at most 20 seconds, close."""
        with self.assembled() as machine:
            outcome = run(machine, 20, launch=self.record)
            self._reached("END")
            return outcome

    def _reached(self, moment: str) -> None:
        self.moments.append(moment)
        self.at(moment, self.machine)


def memory_blocks(machine: Machine) -> list[Backing]:
    """All of a guest's memory, also before it is placed."""
    return machine.platform.blocks


def readonly_bytes(machine: Machine, name: str = "") -> int:
    """How many bytes of all mappings of a guest's blocks (of those called ``name``) the kernel holds read-only."""
    blocks = [block for block in memory_blocks(machine) if name in block.name]
    ranges = [(m.hva, m.hva + m.size) for block in blocks for m in block._mappings]
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, permissions = line.split()[:2]
        start, end = (int(part, 16) for part in where.split("-"))
        if "w" not in permissions:
            total += sum(max(min(end, last) - max(start, first), 0) for first, last in ranges)
    return total


def flash_slots(machine: Machine, unit: int) -> int:
    """How many live slots show a flash unit."""
    memory = machine.platform.flash[unit].memory
    assert memory.gpa is not None
    return sum(
        memory.gpa <= slot.range.start < memory.gpa + memory.size for slot in machine.platform.map.slots
    )


def audit(outcome: Outcome) -> list[tuple[int, str, str]]:
    """The trail of arms and lifts: unit, what, why."""
    return [(change["unit"], change["what"], change["why"]) for change in outcome.report["protection_audit"]]
