"""What a guest finds around its vCPUs: memory map, bus, devices, flash or ``--bios`` (docs/design/machine.md)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from casemate.abi.x86.msr import MTRR_DEF_TYPE
from casemate.address import Gpa
from casemate.devices.bus import Bus
from casemate.host.clock import GuestClock
from casemate.linux.acpi import PM_BASE
from casemate.machine.boards import find_board
from casemate.machine.console import Console
from casemate.machine.devices import Controls, MachineDevices, Wiring
from casemate.machine.firmware import FirmwareFile
from casemate.machine.irqchip import make_irqchip
from casemate.machine.recorder import Recorder
from casemate.machine.spec import MachineSpec
from casemate.memory.backing import Backing
from casemate.memory.guest_memory import GuestMemory
from casemate.memory.map import MemoryMap
from casemate.memory.protection import ProtectionChoice, WriteProtection
from casemate.memory.region import Alias, Ram, Rom, RomDevice

if TYPE_CHECKING:
    from casemate.host.hypervisor import Vcpu, Vm
    from casemate.linux.direct_boot import DirectBoot
    from casemate.machine.flash_unit import FlashUnit

_ISA_BIOS_SIZE = 128 << 10
_MIB = 1 << 20
_MTRRS_ALL_WRITE_BACK = 1 << 11 | 6


class Platform:
    """Memory and devices of one machine, protected as ``protection`` says. ``close`` gives the memory back."""

    def __init__(
        self,
        spec: MachineSpec,
        vm: Vm,
        protection: ProtectionChoice,
        clock: GuestClock,
        console: Console,
        recorder: Recorder,
        controls: Controls,
        lock: AbstractContextManager[object],
    ) -> None:
        self._spec = spec
        self._vm = vm
        self._recorder = recorder
        self.protection = protection
        self.board = find_board(spec.machine)
        self.flash: list[FlashUnit] = []
        self.blocks: list[Backing] = []
        """Every block of guest memory, in the order of its allocation."""
        self.on_memory: Callable[[Backing], None] = lambda _block: None
        """Hears of every block while it is still writable, before a slot shows it."""
        self.map = MemoryMap(vm)
        self.bus = Bus(self.map, vm, recorder)
        self.memory = GuestMemory(self.map, vm, recorder)
        irqchip = make_irqchip(vm, clock, None if spec.is_direct else recorder, lock, spec.vcpus)
        self.interrupts = irqchip.controller
        wiring = Wiring(self.bus, self.map, self.memory, clock, recorder, irqchip)
        self.devices = MachineDevices(
            self.board, spec, wiring, console, controls, protected=vm.capabilities.has_protected_state
        )

    def register_memory(self) -> None:
        """Allocate RAM and place it around the holes of a PC; its slots come with the firmware's, which cuts it."""
        ram = Ram("ram", self._allocate("casemate-ram", self._spec.memory))
        for piece in self.board.ram(self._spec.memory):
            self.map.add(Alias(piece.name, ram, piece.offset, piece.size), piece.gpa)

    def place_firmware(self, firmware: list[FirmwareFile]) -> None:
        """Flash units, or the ``--bios`` image, below 4 GiB, and the last 128 KiB again below 1 MiB."""
        if self._spec.in_flash:
            for number, source in enumerate(firmware):
                self._place_unit(number, source)
        else:
            self._place_bios(firmware[0])
        self.map.commit()

    def place_linux(self, linux: DirectBoot, vcpu: Vcpu) -> None:
        """A kernel without firmware: into RAM, with what firmware would have set up for it."""
        for piece in linux.pieces:
            self.memory.write(piece.gpa, piece.data)
        self.devices.set_up_power_management(PM_BASE)
        # Without MTRRs Linux does without PAT, and a SEV-ES guest without itself.
        vcpu.set_msr(MTRR_DEF_TYPE, _MTRRS_ALL_WRITE_BACK)

    def reset(self) -> None:
        """Devices and flash units to their power-on state; RAM and flash keep their contents."""
        self.devices.reset()
        for unit in self.flash:
            unit.device.reset()

    def unit_at(self, gpa: int | None) -> int | None:
        """Number of the flash unit at ``gpa``."""
        if gpa is None:
            return None
        return next((unit.number for unit in self.flash if unit.contains(gpa)), None)

    def take_held_page(self) -> Gpa | None:
        """The page of the write that userfaultfd held last, if it held one."""
        pages = [unit.memory.take_held_page() for unit in self.flash]
        return next((page for page in pages if page is not None), None)

    def close(self) -> None:
        """Give the guest's memory back; the VM must be closed."""
        for block in self.blocks:
            block.close()

    def _allocate(self, name: str, size: int) -> Backing:
        block = Backing(name, size)
        self.blocks.append(block)
        self.on_memory(block)
        return block

    def _place_unit(self, number: int, source: FirmwareFile) -> None:
        from casemate.machine.flash_unit import make_flash_unit

        backing = self._allocate(f"casemate-flash{number}", len(source.data))
        backing.writable.view[:] = source.data
        unit, region = make_flash_unit(
            number,
            source,
            backing,
            self.protection.protection,
            self._vm,
            self._recorder,
            coalesced=self._spec.allows_coalesced_commands(number),
        )
        unit.memory.attach(self.map, region, source.gpa)
        self.flash.append(unit)
        if number == 0:
            self._place_isa_bios(region)

    def _place_bios(self, source: FirmwareFile) -> None:
        backing = self._allocate("casemate-bios", len(source.data))
        backing.writable.view[:] = source.data
        writable = self.protection.protection is WriteProtection.WRITABLE
        region = Ram("bios", backing) if writable else Rom("bios", backing)
        self.map.add(region, source.gpa)
        self._place_isa_bios(region)

    def _place_isa_bios(self, region: Ram | Rom | RomDevice) -> None:
        if not self._spec.isa_bios:
            return
        size = min(region.size, _ISA_BIOS_SIZE)
        self.map.add(Alias("isa-bios", region, region.size - size, size), Gpa(_MIB - size), priority=1)
