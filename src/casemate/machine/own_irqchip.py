"""Interrupt controllers as devices on the bus, for hosts that keep none themselves (docs/design/machine.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from casemate.address import IOAPIC_BASE, LAPIC_BASE
from casemate.devices.bus import Bus
from casemate.devices.device import IrqLine, Resettable
from casemate.devices.interrupts import PcInterrupts
from casemate.devices.ioapic import IOAPIC_SIZE, Ioapic
from casemate.devices.lapic import LAPIC_SIZE, Lapic
from casemate.devices.pic import PicPair
from casemate.devices.pit import Pit, Port61
from casemate.events import EventSink, Milestone
from casemate.host.clock import GuestClock
from casemate.memory.map import MemoryMap
from casemate.memory.region import Mmio


class MachineInterrupts(PcInterrupts):
    """The board's interrupts; the first one that reaches the CPU shows that DXE set up its timer."""

    sink: EventSink | None = None

    def acknowledge(self) -> int:
        """The vector for the CPU."""
        if self.sink is not None:
            self.sink.report(Milestone("DXE"))
            self.sink = None
        return super().acknowledge()


class LapicPage:
    """Where each CPU finds its own local APIC; ``executing`` says which one makes the access."""

    def __init__(self, lapics: Sequence[Lapic], executing: Callable[[], int]) -> None:
        self._lapics = lapics
        self._executing = executing

    def read_mmio(self, offset: int, size: int) -> int | None:
        """A register of that CPU's."""
        return self._lapics[self._executing()].read_mmio(offset, size)

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        """A register of that CPU's."""
        return self._lapics[self._executing()].write_mmio(offset, size, value)


class OwnIrqchip:
    """8259s, PIT, LAPIC and I/O APIC as devices on the bus."""

    def __init__(self, clock: GuestClock, sink: EventSink | None, vcpus: int = 1) -> None:
        self._lapics = [Lapic(clock, number=number) for number in range(vcpus)]
        self._lapic, self._pic, self._pit = self._lapics[0], PicPair(), Pit(clock)
        self._ioapic = Ioapic(self._lapic)
        for before, lapic in pairwise(self._lapics):
            lapic.connect(before)
            lapic.on_eoi = self._ioapic.end_of_interrupt
        self._port61 = Port61(clock, self._pit)
        self._lapic_page = LapicPage(
            self._lapics, lambda: self.controller.executing if self.controller else 0
        )
        self.controller: MachineInterrupts | None = MachineInterrupts(
            clock, self._lapic, self._pic, self._pit, self._ioapic, others=self._lapics[1:]
        )
        self.controller.sink = sink
        self.irq: Callable[[int], IrqLine] = self.controller.irq
        self.watch = self.controller.watch
        self.resettable: list[Resettable] = [*self._lapics, self._pic, self._pit, self._ioapic, self._port61]

    def place(self, bus: Bus, memory_map: MemoryMap) -> None:
        """Put everything where a PC has it; port 0x61 is taken from the keyboard controller's."""
        bus.claim_ports(0x20, 2, self._pic.master)
        bus.claim_ports(0xA0, 2, self._pic.slave)
        bus.claim_ports(0x4D0, 2, self._pic.elcr)
        bus.claim_ports(0x40, 4, self._pit)
        bus.claim_ports(0x61, 1, self._port61, over=True)
        bus.count_also(lambda: sum(lapic.record.accesses for lapic in self._lapics))
        memory_map.add(Mmio("lapic", LAPIC_SIZE, self._lapic_page), LAPIC_BASE)
        memory_map.add(Mmio("ioapic", IOAPIC_SIZE, self._ioapic), IOAPIC_BASE)
