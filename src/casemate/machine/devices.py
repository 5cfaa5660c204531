"""The devices of a board, put on its bus (docs/design/machine.md)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from casemate.address import FOUR_GIB, Gpa
from casemate.devices import debugcon, exit_port, pc_testdev
from casemate.devices.bus import Bus
from casemate.devices.cmos import Cmos
from casemate.devices.fw_cfg.fw_cfg import FwCfg
from casemate.devices.fw_cfg.keys import PORT as FW_CFG_PORT
from casemate.devices.fw_cfg.keys import PORT_COUNT as FW_CFG_PORTS
from casemate.devices.fw_cfg.keys import Key
from casemate.devices.i8042 import I8042
from casemate.devices.pci.bus import PciHost
from casemate.devices.pm import PM_BLOCK_SIZE, PmBlock
from casemate.devices.pm_timer import PROTECTED_STALL_GAP_NS, STALL_GAP_NS, PmTimer
from casemate.devices.reset import Port92, ResetControl
from casemate.devices.serial.uart16550 import Uart16550
from casemate.events import EventSink
from casemate.host.clock import GuestClock
from casemate.machine.acpi_files import AcpiFiles
from casemate.machine.boards.board import (
    KEYBOARD_IRQ,
    SERIAL_IRQ,
    SERIAL_PORT,
    Board,
    ChipsetEvents,
)
from casemate.machine.console import Console
from casemate.machine.irqchip import HostIrqchip
from casemate.machine.kernel_files import add_kernel
from casemate.machine.spec import MachineSpec
from casemate.memory.guest_memory import GuestMemory
from casemate.memory.map import MemoryMap
from casemate.memory.region import Mmio

if TYPE_CHECKING:
    from casemate.devices.device import PortIo, Resettable
    from casemate.machine.own_irqchip import OwnIrqchip

_E820_RAM = 1


class Controls:
    """What devices may do to the machine, on a vCPU's thread; ``stop`` when the guest wrote to the exit port."""

    def __init__(
        self, power_off: Callable[[], None], reset: Callable[[], None], stop: Callable[[], None]
    ) -> None:
        self.power_off, self.reset, self.stop = power_off, reset, stop


class Wiring:
    """What devices are connected to."""

    def __init__(
        self,
        bus: Bus,
        memory_map: MemoryMap,
        memory: GuestMemory,
        clock: GuestClock,
        sink: EventSink,
        irqchip: OwnIrqchip | HostIrqchip,
    ) -> None:
        self.bus, self.map, self.memory = bus, memory_map, memory
        self.clock, self.sink, self.irqchip = clock, sink, irqchip


class MachineDevices:
    """Everything on the bus of one board; ``protected`` is whether the guest's registers are hidden from the host."""

    def __init__(
        self,
        board: Board,
        spec: MachineSpec,
        wiring: Wiring,
        console: Console,
        controls: Controls,
        *,
        protected: bool = False,
    ) -> None:
        self._wiring = wiring
        self._resettable: list[Resettable] = []
        irqchip = wiring.irqchip
        # A host's own controllers ask nobody whether it is time.
        uart_clock = None if irqchip.controller is None else wiring.clock
        self.serial = Uart16550(console.put, irqchip.irq(SERIAL_IRQ), uart_clock)
        if irqchip.controller is not None:
            self.serial.on_timer = irqchip.controller.rearm
        irqchip.watch(self.serial.poll, self.serial.deadline)
        self.exit_port = exit_port.ExitPort(controls.stop)
        gap = PROTECTED_STALL_GAP_NS if protected else STALL_GAP_NS
        # The host's own timers cannot be moved forward with ours.
        timer = PmTimer(wiring.clock, skip_stalls=irqchip.controller is not None, stall_gap=gap)
        self._pm = PmBlock(timer, controls.power_off)
        self._pci = PciHost()
        self._ecam: Mmio | None = None
        self._acpi: AcpiFiles | None = None
        self._place(SERIAL_PORT, 8, self.serial)
        self._place(debugcon.PORT, 1, debugcon.DebugCon(console.debug))
        self._place(exit_port.PORT, exit_port.PORTS if spec.test_device else 1, self.exit_port)
        self._resettable += [self.serial, self._pm, *irqchip.resettable]
        if board.pm_base is not None:
            self._move_pm(board.pm_base)
        if board.pci is not None:
            self._place_pc(board, spec, controls.reset)
        if spec.test_device:
            self._place_test_device()

    def reset(self) -> None:
        """All devices to their power-on state."""
        for device in self._resettable:
            device.reset()

    def _place_pc(self, board: Board, spec: MachineSpec, reset: Callable[[], None]) -> None:
        low = board.low_memory(spec.memory)
        fw_cfg = _fw_cfg(self._wiring, low, spec)
        for name, data in spec.fw_cfg:
            fw_cfg.add_file(name, data)
        if not spec.is_direct:
            self._acpi = AcpiFiles(fw_cfg, spec.vcpus)
        if spec.kernel is not None and not spec.is_direct:
            add_kernel(fw_cfg, spec.kernel, spec.initrd, spec.append)
        cmos = Cmos(self._wiring.clock, low, spec.memory - low)
        keyboard = I8042(reset, self._wiring.irqchip.irq(KEYBOARD_IRQ))
        reset_control, port92 = ResetControl(reset), Port92(reset)
        self._place(0x60, 5, keyboard)
        self._wiring.irqchip.place(self._wiring.bus, self._wiring.map)
        self._place(0x70, 2, cmos)
        self._place(0x92, 1, port92)
        self._place(FW_CFG_PORT, FW_CFG_PORTS, fw_cfg)
        self._place(0xCF8, 8, self._pci)
        self._wiring.bus.claim_ports(0xCF9, 1, reset_control, over=True)
        assert board.pci is not None
        events = ChipsetEvents(pm_base=self._move_pm, ecam=self._move_ecam)
        for (device, function), pci_function in board.pci(events).items():
            self._pci.add(device, function, pci_function)
        self._resettable += [fw_cfg, cmos, keyboard, reset_control, port92, self._pci]

    def _place_test_device(self) -> None:
        latch, lines = pc_testdev.Latch(), pc_testdev.IrqPorts(self._wiring.irqchip.irq)
        memory = pc_testdev.TestMemory()
        self._place(pc_testdev.LATCH_PORT, 4, latch)
        self._place(pc_testdev.FLUSH_PORT, 4, pc_testdev.PageFlush())
        self._place(pc_testdev.BYTES_PORT, 4, latch)
        self._place(pc_testdev.IRQ_PORT, pc_testdev.IRQ_LINES, lines)
        self._wiring.map.add(Mmio("pc-testdev", pc_testdev.MEMORY_SIZE, memory), pc_testdev.MEMORY)
        self._resettable += [latch, lines, memory]

    def set_up_power_management(self, base: int) -> None:
        """Put the ACPI block at port ``base``, as firmware would."""
        self._move_pm(base)

    def _place(self, first: int, count: int, device: PortIo) -> None:
        self._wiring.bus.claim_ports(first, count, device)

    def _move_pm(self, base: int | None) -> None:
        self._wiring.bus.release_ports(self._pm)
        if base is not None:
            self._wiring.bus.claim_free_ports(base, PM_BLOCK_SIZE, self._pm)
            if self._acpi is not None:
                self._acpi.move(base)

    def _move_ecam(self, base: int | None, size: int) -> None:
        if self._ecam is not None:
            self._wiring.map.remove(self._ecam)
            self._ecam = None
        if base is not None:
            self._ecam = Mmio("ecam", size, self._pci)
            self._wiring.map.add(self._ecam, Gpa(base))
        self._wiring.map.commit()


def _fw_cfg(wiring: Wiring, low: int, spec: MachineSpec) -> FwCfg:
    fw_cfg, memory = FwCfg(wiring.memory, wiring.sink), spec.memory
    fw_cfg.add_item(Key.RAM_SIZE, memory.to_bytes(8, "little"))
    fw_cfg.add_item(Key.NOGRAPHIC, (1).to_bytes(2, "little"))
    fw_cfg.add_item(Key.NB_CPUS, spec.vcpus.to_bytes(2, "little"))
    fw_cfg.add_item(Key.MAX_CPUS, spec.vcpus.to_bytes(2, "little"))
    fw_cfg.add_item(Key.BOOT_MENU, bytes(2))
    e820 = struct.pack("<QQI", 0, low, _E820_RAM)
    if memory > low:
        e820 += struct.pack("<QQI", FOUR_GIB, memory - low, _E820_RAM)
    fw_cfg.add_file("etc/e820", e820)
    return fw_cfg
