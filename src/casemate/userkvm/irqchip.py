"""The in-kernel interrupt controllers: LAPIC, I/O APIC, 8259s, PIT, and what is routed to them (Linux api.rst).

All calls hold one lock, for interrupts come from any thread of the monitor.
"""

import ctypes
import threading
from collections.abc import Callable
from ctypes import c_uint8
from typing import NamedTuple

from casemate.abi.kvm.structs import IRQCHIP_IOAPIC, IRQCHIP_PIC_MASTER, IRQCHIP_PIC_SLAVE, IoapicStateStruct
from casemate.address import IOAPIC_BASE, LAPIC_BASE
from casemate.devices.device import PortIo
from casemate.devices.interrupts import PcInterrupts, ProcessorInterrupts
from casemate.devices.ioapic import IOAPIC_SIZE, PINS, VERSION_82093AA, Ioapic, IoapicState
from casemate.devices.lapic import HAS_DEADLINE, HAS_X2APIC, LAPIC_SIZE, Lapic
from casemate.devices.pic import PicPair
from casemate.devices.pit import Pit, Port61
from casemate.host.clock import GuestClock
from casemate.userkvm.library import Inside

_SLAVE_IRQ = 8
_MSI_LOGICAL, _LEVEL = 1 << 2, 1 << 15


class Pin(NamedTuple):
    """An input of one chip, by KVM's number of the chip."""

    chip: int
    pin: int


class Message(NamedTuple):
    """A message-signalled interrupt."""

    address: int
    data: int


Route = Pin | Message


def default_routes() -> dict[int, list[Route]]:
    """What KVM_CREATE_IRQCHIP routes: a PC's wires; the timer is input 0 of both."""
    routes: dict[int, list[Route]] = {gsi: [Pin(IRQCHIP_IOAPIC, gsi)] for gsi in range(PINS)}
    for gsi in range(16):
        chip = IRQCHIP_PIC_MASTER if gsi < _SLAVE_IRQ else IRQCHIP_PIC_SLAVE
        routes[gsi].append(Pin(chip, gsi % _SLAVE_IRQ))
    return routes


class Irqchip:
    """One VM's. ``kick`` is called when an interrupt waits for the vCPU, from any thread."""

    def __init__(self, clock: GuestClock) -> None:
        self.lock = threading.RLock()
        self.kick: Callable[[], None] = lambda: None
        self.routes = default_routes()
        self.lapic, self.pic, self.pit = Lapic(clock, HAS_X2APIC | HAS_DEADLINE), PicPair(), Pit(clock)
        self._clock = clock
        self.lapics = [self.lapic]
        """Of each vCPU."""
        self.ioapic = Ioapic(self.lapic, VERSION_82093AA)
        self._port61 = Port61(clock, self.pit)
        self._controller = PcInterrupts(clock, self.lapic, self.pic, self.pit, self.ioapic, is_pc=False)
        self._ports: dict[int, tuple[PortIo, int]] = {}
        self._is_low: ctypes.Array[c_uint8] | None = None
        """Lines that are known to be low: a monitor that lowers them again is answered by the library."""
        self.executing = 0

    def show_lines(self, inside: Inside) -> None:
        """Tell the library which lines are low."""
        self._is_low = inside.is_low

    def forget_lines(self) -> None:
        """Something else than a monitor that drives them changed what they do."""
        if self._is_low is not None:
            self._is_low[:] = [0] * len(self._is_low)

    def place(self, inside: Inside, *, has_pit: bool) -> None:
        """Serve the controllers' registers without leaving KVM_RUN."""
        devices: list[tuple[int, int, PortIo]] = [
            (0x20, 2, self.pic.master),
            (0xA0, 2, self.pic.slave),
            (0x4D0, 2, self.pic.elcr),
        ]
        if has_pit:
            devices += [(0x40, 4, self.pit), (0x61, 1, self._port61)]
        for first, count, device in devices:
            inside.add_ports(first, count)
            for offset in range(count):
                self._ports[first + offset] = device, offset
        if not has_pit:
            inside.add_mmio(LAPIC_BASE, LAPIC_SIZE)
            inside.add_mmio(IOAPIC_BASE, IOAPIC_SIZE)

    # What the vCPU asks (casemate.host.hypervisor.InterruptController).

    @property
    def on_deadline(self) -> Callable[[int], None]:
        """Told when something may be due."""
        return self._controller.on_deadline

    @on_deadline.setter
    def on_deadline(self, hear: Callable[[int], None]) -> None:
        self._controller.on_deadline = hear

    def of(self, number: int) -> "Irqchip | LockedInterrupts":
        """What vCPU ``number`` asks."""
        return LockedInterrupts(self._controller.of(number), self.lock) if number else self

    def add_processor(self, number: int) -> None:
        """One more vCPU has a local APIC, with this ID."""
        with self.lock:
            lapic = Lapic(self._clock, self.lapic.record.features, number)
            lapic.connect(self.lapics[-1])
            lapic.on_eoi = self.lapic.on_eoi
            self.lapics.append(lapic)
            self._controller.add_processor(lapic)

    def deadline(self) -> int | None:
        """When the next timer is due."""
        return self._controller.deadline()

    def pending(self) -> bool:
        """Whether an interrupt waits."""
        with self.lock:
            return self._controller.pending()

    def acknowledge(self) -> int:
        """The vector."""
        with self.lock:
            return self._controller.acknowledge()

    # The guest's accesses; None and False: nobody is there.

    def read_port(self, port: int, size: int) -> int | None:
        """IN."""
        found = self._ports.get(port)
        if found is None:
            return None
        with self.lock:
            return found[0].read_port(found[1], size)

    def write_port(self, port: int, size: int, value: int) -> bool:
        """OUT."""
        found = self._ports.get(port)
        if found is None:
            return False
        with self.lock:
            if found[0] is self.pic.elcr:
                self.forget_lines()
            return found[0].write_port(found[1], size, value)

    def chip_at(self, gpa: int, number: int = 0) -> Lapic | Ioapic | None:
        """Whose registers vCPU ``number`` finds there."""
        page = gpa & ~0xFFF
        if page == LAPIC_BASE and self.lapics[number].is_at_home():
            return self.lapics[number]
        return self.ioapic if page == IOAPIC_BASE else None

    # The monitor's.

    def set_level(self, gsi: int, level: bool) -> None:
        """Drive an interrupt line to wherever it is routed."""
        with self.lock:
            for route in self.routes.get(gsi, ()):
                self._drive(route, level)
            if self._is_low is not None and gsi < len(self._is_low):
                self._is_low[gsi] = not level
        self._kick_if_pending()

    def deliver(self, message: Message) -> bool:
        """A message; whether it reached a LAPIC that took it."""
        with self.lock:
            logical = bool(message.address & _MSI_LOGICAL)
            accepted = self.lapic.deliver(
                message.address >> 12 & 0xFF,
                logical,
                message.data >> 8 & 7,
                message.data & 0xFF,
                bool(message.data & _LEVEL),
            )
        self._kick_if_pending()
        return accepted

    def reset(self) -> None:
        """All but the LAPIC, which is the vCPU's."""
        with self.lock:
            for device in (self.pic, self.pit, self._port61):
                device.reset()
            self.forget_lines()

    def ioapic_state(self) -> IoapicStateStruct:
        """As KVM_GET_IRQCHIP has it."""
        with self.lock:
            found = self.ioapic.save()
        state = IoapicStateStruct(IOAPIC_BASE, found.selected, found.id, found.lines)
        state.redirtbl[:] = found.table
        return state

    def set_ioapic_state(self, state: IoapicStateStruct) -> None:
        """As KVM_SET_IRQCHIP gives it."""
        with self.lock:
            self.ioapic.load(IoapicState(state.ioregsel & 0xFF, state.id, state.irr, tuple(state.redirtbl)))
            self.forget_lines()
        self._kick_if_pending()

    def load_lapic(self, page: bytes, number: int) -> None:
        """KVM_SET_LAPIC."""
        with self.lock:
            self.lapics[number].load(page)
        self._kick_if_pending()

    def save_lapic(self, number: int) -> bytes:
        """KVM_GET_LAPIC."""
        with self.lock:
            return self.lapics[number].save()

    def _drive(self, route: Route, level: bool) -> None:
        if isinstance(route, Message):
            if level:
                self.deliver(route)
        elif route.chip == IRQCHIP_IOAPIC:
            if route.pin < PINS:
                self.ioapic.set_irq(route.pin, level)
        else:
            self.pic.set_irq(route.pin + (_SLAVE_IRQ if route.chip == IRQCHIP_PIC_SLAVE else 0), level)

    def _kick_if_pending(self) -> None:
        if self._controller.deadline() == 0:
            self.kick()


class LockedInterrupts:
    """What a vCPU but the first asks; with the lock of all controllers (``InterruptController``)."""

    def __init__(self, own: PcInterrupts | ProcessorInterrupts, lock: threading.RLock) -> None:
        self._own = own
        self._lock = lock
        self.lapic = own.lapic
        self.executing = 0

    def of(self, number: int) -> "LockedInterrupts":
        """The same for vCPU ``number``."""
        return LockedInterrupts(self._own.of(number), self._lock)

    @property
    def on_deadline(self) -> Callable[[int], None]:
        """Told when something may be due."""
        return self._own.on_deadline

    @on_deadline.setter
    def on_deadline(self, hear: Callable[[int], None]) -> None:
        self._own.on_deadline = hear

    def deadline(self) -> int | None:
        """When its next timer is due."""
        return self._own.deadline()

    def pending(self) -> bool:
        """Whether an interrupt waits."""
        with self._lock:
            return self._own.pending()

    def acknowledge(self) -> int:
        """The vector."""
        with self._lock:
            return self._own.acknowledge()
