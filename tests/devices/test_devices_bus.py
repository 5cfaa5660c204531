"""The bus: who answers, who does not, and writes that must not land."""

from __future__ import annotations

import pytest

from casemate.address import Gpa
from casemate.devices.bus import Access, Bus
from casemate.errors import InternalError
from casemate.events import AccessPath, Violation, ViolationKind
from casemate.host.capabilities import VmCapabilities
from casemate.host.hypervisor import IoBus
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory
from casemate.memory.map import MemoryMap
from casemate.memory.protection import WriteProtection
from casemate.memory.region import Mmio, Ram, Rom, RomDevice
from casemate.testing.recording_vm import RecordingSink, RecordingVm

RAM, ROM, REGISTERS, FLASH, HOLE = 0, 0x10000, 0x20000, 0x30000, 0x40000


class Registers:
    """Remembers every access; answers unless it is told to be empty."""

    def __init__(self, empty: bool = False) -> None:
        self.seen: list[tuple[object, ...]] = []
        self.empty = empty

    def read_port(self, offset: int, size: int) -> int | None:
        self.seen.append(("read", offset, size))
        return None if self.empty else 0x40 + offset

    def write_port(self, offset: int, size: int, value: int) -> bool:
        self.seen.append(("write", offset, size, value))
        return not self.empty

    read_mmio = read_port
    write_mmio = write_port


class Machine:
    def __init__(
        self, protection: WriteProtection = WriteProtection.READONLY_SLOT, protected: bool = False
    ) -> None:
        self.vm = RecordingVm(VmCapabilities(readonly_memory=True, has_protected_state=protected))
        self.sink = RecordingSink()
        self.map = MemoryMap(self.vm)
        self.ram, self.rom, flash = Backing("ram", 0x2000), Backing("rom", 0x1000), Backing("flash", 0x1000)
        self.registers, self.device = Registers(), Registers()
        self.map.add(Ram("ram", self.ram), Gpa(RAM))
        self.map.add(Rom("rom", self.rom), Gpa(ROM))
        self.map.add(Mmio("registers", 0x10, self.registers), Gpa(REGISTERS))
        self.flash = FlashMemory(1, flash, protection, self.vm, self.sink)
        self.flash.attach(self.map, RomDevice("flash", flash, self.device), Gpa(FLASH))
        self.bus = Bus(self.map, self.vm, self.sink)
        self.sink.events.clear()
        self.vm.calls.clear()


def test_bus_ports_reach_their_device_relative_to_its_first() -> None:
    machine, device = Machine(), Registers()
    machine.bus.claim_ports(0x3F8, 8, device)
    assert machine.bus.read_port(0x3FD, 1) == 0x45
    machine.bus.write_port(0x3F8, 1, 0x41)
    assert device.seen == [("read", 5, 1), ("write", 0, 1, 0x41)]
    assert machine.bus.unclaimed_total == 0


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_bus_unclaimed_ports_read_all_ones_and_are_counted(size: int, ones: int) -> None:
    bus = Machine().bus
    bus.claim_ports(0x70, 2, Registers(empty=True))
    assert bus.read_port(0x71, size) == bus.read_port(0x80, size) == ones
    bus.write_port(0x80, size, 1)
    bus.write_port(0x70, size, 1)
    assert bus.unclaimed == {
        (Access.PORT_READ, 0x71): 1,
        (Access.PORT_READ, 0x80): 1,
        (Access.PORT_WRITE, 0x80): 1,
        (Access.PORT_WRITE, 0x70): 1,
    }


def test_bus_port_claims_collide_unless_meant() -> None:
    bus = Machine().bus
    first, second = Registers(), Registers()
    bus.claim_ports(0xCF8, 8, first)
    with pytest.raises(InternalError, match="port 0xcf9"):
        bus.claim_ports(0xCF9, 1, second)
    bus.claim_ports(0xCF9, 1, second, over=True)
    bus.write_port(0xCF9, 1, 6)
    bus.write_port(0xCFC, 4, 7)
    assert (second.seen, first.seen) == ([("write", 0, 1, 6)], [("write", 4, 4, 7)])
    bus.release_ports(first)
    assert bus.read_port(0xCF8, 1) == 0xFF
    assert bus.read_port(0xCF9, 1) == 0x40


def test_bus_mmio_reaches_registers() -> None:
    machine = Machine()
    assert machine.bus.read_mmio(REGISTERS + 4, 4) == 0x44
    machine.bus.write_mmio(REGISTERS + 8, 8, 5)
    assert machine.registers.seen == [("read", 4, 4), ("write", 8, 8, 5)]


@pytest.mark.parametrize("gpa", [HOLE, REGISTERS + 0x10, 1 << 52])
def test_bus_mmio_holes_read_all_ones_and_are_counted(gpa: int) -> None:
    bus = Machine().bus
    assert bus.read_mmio(gpa, 8) == (1 << 64) - 1
    bus.write_mmio(gpa, 8, 1)
    assert bus.unclaimed == {(Access.MMIO_READ, gpa): 1, (Access.MMIO_WRITE, gpa): 1}


def test_bus_counts_a_bounded_number_of_places() -> None:
    bus = Machine().bus
    for i in range(10000):
        bus.read_mmio(HOLE + i, 1)
    assert bus.unclaimed_total == 10000
    assert len(bus.unclaimed) == 4096


def test_bus_splits_accesses_across_the_end_of_registers() -> None:
    machine = Machine()
    assert machine.bus.read_mmio(REGISTERS + 0xE, 4) == 0xFFFF_4F4E
    machine.bus.write_mmio(REGISTERS + 0xF, 2, 0x1234)
    assert machine.registers.seen[-1] == ("write", 0xF, 1, 0x34)
    assert machine.bus.unclaimed[Access.MMIO_WRITE, REGISTERS + 0x10] == 1


def test_bus_splits_odd_widths() -> None:
    machine = Machine()
    assert machine.bus.read_mmio(REGISTERS, 3) == 0x424140
    machine.bus.write_mmio(REGISTERS, 3, 0x030201)
    assert machine.registers.seen[-3:] == [("write", 0, 1, 1), ("write", 1, 1, 2), ("write", 2, 1, 3)]


def test_bus_emulated_stores_reach_ram_and_the_cpu_hears_of_it() -> None:
    machine = Machine()
    machine.bus.write_mmio(0x123, 4, 0x11223344)
    assert machine.bus.read_mmio(0x123, 4) == 0x11223344
    assert machine.vm.calls == [("memory_written", 0x123, 4)]
    assert machine.sink.events == []


def test_bus_store_across_the_end_of_ram_loses_the_rest() -> None:
    machine = Machine()
    machine.bus.write_mmio(0x1FFE, 4, 0x11223344)
    assert bytes(machine.ram.writable.view[-2:]) == b"\x44\x33"
    assert machine.bus.read_mmio(0x1FFE, 4) == 0xFFFF3344


def test_bus_store_to_rom_is_dropped_and_reported() -> None:
    machine = Machine()
    machine.bus.write_mmio(ROM + 8, 2, 0xBEEF)
    assert machine.bus.read_mmio(ROM + 8, 2) == 0
    expected = Violation(
        ViolationKind.PROTECTED_MEMORY, None, ROM + 8, 2, 0xBEEF, path=AccessPath.READONLY_SLOT
    )
    assert machine.sink.events == [expected]


@pytest.mark.parametrize(
    ("protection", "protected", "is_command"),
    [
        (WriteProtection.READONLY_SLOT, False, True),
        (WriteProtection.READONLY_SLOT, True, True),
        (WriteProtection.READONLY_VMA, False, False),
        (WriteProtection.READONLY_VMA, True, True),
        (WriteProtection.READONLY_VIEW, False, False),
        (WriteProtection.READONLY_VIEW, True, True),
    ],
)
def test_bus_store_to_flash_in_array_mode(
    protection: WriteProtection, protected: bool, is_command: bool
) -> None:
    machine = Machine(protection, protected)
    machine.bus.write_mmio(FLASH + 1, 1, 0x70)
    violation = Violation(ViolationKind.PROTECTED_MEMORY, 1, FLASH + 1, 1, 0x70, path=AccessPath.EMULATOR)
    assert machine.device.seen == ([("write", 1, 1, 0x70)] if is_command else [])
    assert machine.sink.events == ([] if is_command else [violation])


def test_bus_store_to_flash_in_command_mode_is_a_command() -> None:
    machine = Machine(WriteProtection.READONLY_VMA)
    machine.flash.leave_array_mode()
    bus: IoBus = machine.bus
    bus.write_mmio(FLASH, 1, 0xFF)
    assert machine.device.seen == [("write", 0, 1, 0xFF)]
