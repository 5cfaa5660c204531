"""The I/O APIC: 24 interrupt inputs routed to the local APIC (Intel 82093AA data sheet, 290566)."""

from __future__ import annotations

from dataclasses import dataclass

from casemate.devices.lapic import DeliveryMode, Lapic

IOAPIC_SIZE = 0x1000
PINS = 24
VERSION = (PINS - 1) << 16 | 0x11
IOREGSEL, IOWIN = 0x00, 0x10
INDEX_ID, INDEX_VERSION, INDEX_ARBITRATION, INDEX_TABLE = 0x00, 0x01, 0x02, 0x10

RTE_LOGICAL = 1 << 11
RTE_REMOTE_IRR = 1 << 14
RTE_LEVEL = 1 << 15
RTE_MASKED = 1 << 16
RTE_WRITABLE = 0xFF00_0000_0001_AFFF


@dataclass(frozen=True, slots=True)
class IoapicState:
    """IOREGSEL, the ID register, the level of each pin as a bit, and the redirection table."""

    selected: int
    id: int
    lines: int
    table: tuple[int, ...]


class Ioapic:
    """Redirection table, edge and level pins; delivers fixed and lowest-priority interrupts to ``lapic``.

    A level-triggered pin is delivered again after the local APIC's EOI while its line stays asserted.
    """

    def __init__(self, lapic: Lapic) -> None:
        self._lapic = lapic
        lapic.on_eoi = self.end_of_interrupt
        self.reset()

    def reset(self) -> None:
        """All pins masked."""
        self._lines = 0
        self._index = 0
        self._id = 0
        self._table = [RTE_MASKED] * PINS

    def set_irq(self, pin: int, level: bool) -> None:
        """Drive a pin. An edge on a masked pin is lost, as on the chip."""
        bit = 1 << pin
        rising = level and not self._lines & bit
        self._lines = self._lines | bit if level else self._lines & ~bit
        if rising:
            self._deliver(pin)

    def enabled(self, pin: int) -> bool:
        """Whether a pin is unmasked."""
        return not self._table[pin] & RTE_MASKED

    def end_of_interrupt(self, vector: int) -> None:
        """The EOI message of the local APIC for a level-triggered ``vector``."""
        for pin, entry in enumerate(self._table):
            if entry & RTE_REMOTE_IRR and entry & 0xFF == vector:
                self._table[pin] = entry & ~RTE_REMOTE_IRR
                self._deliver_if_asserted(pin)

    def read_mmio(self, offset: int, size: int) -> int:
        """IOREGSEL or the register that it selects."""
        if offset == IOREGSEL:
            return self._index
        return self._read(self._index) & (1 << 8 * size) - 1 if offset == IOWIN else 0

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        """IOREGSEL (any width) or the register that it selects (32 bits)."""
        if offset == IOREGSEL:
            self._index = value & 0xFF
        elif offset == IOWIN and size == 4:
            self._write(self._index, value)
        else:
            return False
        return True

    def save(self) -> IoapicState:
        """Its registers and pins."""
        return IoapicState(self._index, self._id, self._lines, tuple(self._table))

    def load(self, state: IoapicState) -> None:
        """Take such a state; a pin that is asserted is delivered if it may be."""
        self._index, self._id, self._lines = state.selected, state.id, state.lines
        self._table = list(state.table)
        for pin in range(PINS):
            self._deliver_if_asserted(pin)

    def _read(self, index: int) -> int:
        if index in (INDEX_ID, INDEX_ARBITRATION):
            return self._id
        if index == INDEX_VERSION:
            return VERSION
        pin, high = divmod(index - INDEX_TABLE, 2)
        return self._table[pin] >> 32 * high & 0xFFFF_FFFF if 0 <= pin < PINS else 0

    def _write(self, index: int, value: int) -> None:
        if index == INDEX_ID:
            self._id = value & 0x0F00_0000
        pin, high = divmod(index - INDEX_TABLE, 2)
        if not 0 <= pin < PINS:
            return
        shift = 32 * high
        writable = RTE_WRITABLE & 0xFFFF_FFFF << shift
        entry = self._table[pin] & ~writable | value << shift & writable
        if not entry & RTE_LEVEL:
            entry &= ~RTE_REMOTE_IRR
        self._table[pin] = entry
        self._deliver_if_asserted(pin)

    def _deliver_if_asserted(self, pin: int) -> None:
        if self._table[pin] & RTE_LEVEL and self._lines >> pin & 1:
            self._deliver(pin)

    def _deliver(self, pin: int) -> None:
        entry = self._table[pin]
        if entry & (RTE_MASKED | RTE_REMOTE_IRR):
            return
        mode = entry >> 8 & 7
        if mode not in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY):
            return
        level = bool(entry & RTE_LEVEL)
        addressed = self._lapic.is_destination(entry >> 56, bool(entry & RTE_LOGICAL))
        if addressed and self._lapic.accept(entry & 0xFF, level) and level:
            self._table[pin] = entry | RTE_REMOTE_IRR
