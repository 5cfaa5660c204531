"""The I/O APIC: 24 interrupt inputs routed to the local APIC (Intel 82093AA data sheet, 290566; ICH9: 316972, 13.5)."""

from collections.abc import Callable
from typing import NamedTuple

from casemate.devices.lapic import DeliveryMode, Lapic

IOAPIC_SIZE = 0x1000
PINS = 24
VERSION_82093AA, VERSION_ICH9 = 0x11, 0x20
"""The second one has an EOI register, for local APICs that suppress their broadcast."""
IOREGSEL, IOWIN, EOI = 0x00, 0x10, 0x40
INDEX_ID, INDEX_VERSION, INDEX_ARBITRATION, INDEX_TABLE = 0x00, 0x01, 0x02, 0x10

RTE_MODE = 7 << 8
RTE_EXT_INT = DeliveryMode.EXT_INT << 8
RTE_LOGICAL = 1 << 11
RTE_REMOTE_IRR = 1 << 14
RTE_LEVEL = 1 << 15
RTE_MASKED = 1 << 16
RTE_WRITABLE = 0xFF00_0000_0001_AFFF


class IoapicState(NamedTuple):
    """IOREGSEL, the ID register, the level of each pin as a bit, and the redirection table."""

    selected: int
    id: int
    lines: int
    table: tuple[int, ...]


class Ioapic:
    """Redirection table, edge and level pins; delivers interrupts, NMI and INIT to ``lapic``, and passes ExtINT on.

    A level-triggered pin is delivered again after the EOI, the local APIC's or that of a ``VERSION_ICH9``, while its
    line stays asserted. SMIs go nowhere.
    """

    def __init__(self, lapic: Lapic, version: int = VERSION_ICH9) -> None:
        self._lapic = lapic
        self._version = version
        self.mask_written: Callable[[], None] = lambda: None
        """Called when other pins may be unmasked now."""
        lapic.on_eoi = self.end_of_interrupt
        self.reset()

    def reset(self) -> None:
        """All pins masked."""
        self._lines = 0
        self._index = 0
        self._id = 0
        self._table = [RTE_MASKED] * PINS
        self._pass_ext_int()

    def set_irq(self, pin: int, level: bool) -> None:
        """Drive a pin. An edge on a masked pin is lost, as on the chip."""
        bit = 1 << pin
        rising = level and not self._lines & bit
        self._lines = self._lines | bit if level else self._lines & ~bit
        if rising:
            self._deliver(pin)
        if self._table[pin] & RTE_MODE == RTE_EXT_INT:
            self._pass_ext_int()

    def enabled(self, pin: int) -> bool:
        """Whether a pin is unmasked."""
        return not self._table[pin] & RTE_MASKED

    def vector(self, pin: int) -> int | None:
        """That of an unmasked pin."""
        return self._table[pin] & 0xFF if self.enabled(pin) else None

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
        elif offset == EOI and size == 4 and self._version == VERSION_ICH9:
            self.end_of_interrupt(value & 0xFF)
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
        self._pass_ext_int()
        for pin in range(PINS):
            self._deliver_if_asserted(pin)

    def _read(self, index: int) -> int:
        if index in (INDEX_ID, INDEX_ARBITRATION):
            return self._id
        if index == INDEX_VERSION:
            return (PINS - 1) << 16 | self._version
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
        self.mask_written()
        self._pass_ext_int()
        self._deliver_if_asserted(pin)

    def _pass_ext_int(self) -> None:
        """The 8259 gets through to the CPU by a pin that its INT is wired to."""
        self._lapic.record.ext_int_passed = any(
            entry & (RTE_MODE | RTE_MASKED) == RTE_EXT_INT
            and self._lines >> pin & 1
            and self._lapic.is_destination(entry >> 56, bool(entry & RTE_LOGICAL))
            for pin, entry in enumerate(self._table)
        )

    def _deliver_if_asserted(self, pin: int) -> None:
        if self._table[pin] & RTE_LEVEL and self._lines >> pin & 1:
            self._deliver(pin)

    def _deliver(self, pin: int) -> None:
        entry = self._table[pin]
        if entry & (RTE_MASKED | RTE_REMOTE_IRR):
            return
        mode = entry >> 8 & 7
        # The data sheet has NMI and INIT as edges whatever the entry says, so they leave no remote IRR.
        level = bool(entry & RTE_LEVEL) and mode in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY)
        taken = self._lapic.deliver(entry >> 56, bool(entry & RTE_LOGICAL), mode, entry & 0xFF, level)
        if taken and level:
            self._table[pin] = entry | RTE_REMOTE_IRR
