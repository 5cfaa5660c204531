"""The two 8259A interrupt controllers of a PC (Intel 231468; ELCR: Intel 316972, 13.4)."""

from __future__ import annotations

from collections.abc import Callable

from casemate.devices.device import IrqLine

CASCADE_IRQ = 2
SPURIOUS_IRQ = 7
MASTER_ELCR_MASK, SLAVE_ELCR_MASK = 0xF8, 0xDE
"""Inputs that may be level-triggered; the timer, keyboard, cascade, clock and FPU are always edges."""

ICW1, ICW1_NEEDS_ICW4 = 0x10, 0x01
ICW4_AUTO_EOI, ICW4_FULLY_NESTED = 0x02, 0x10
OCW3 = 0x08
OCW3_POLL, OCW3_READ_SELECT, OCW3_READ_ISR, OCW3_SPECIAL_SELECT, OCW3_SPECIAL = 0x04, 0x02, 0x01, 0x40, 0x20
OCW2_EOI, OCW2_SPECIFIC, OCW2_ROTATE = 0x20, 0x40, 0x80


class I8259:
    """One chip: command port (offset 0) and data port (offset 1). ``output`` is its INT pin.

    ``slaves`` are the inputs, one bit each, that have another chip on them: in special fully nested mode that chip's
    higher inputs interrupt its lower ones.
    """

    _poll: bool

    def __init__(self, output: IrqLine, slaves: int = 0) -> None:
        self._output = output
        self._slaves = slaves
        self.refresh: Callable[[], None] = lambda: None
        """Called before the guest sees what is requested: a timer may be due."""
        self.mask_written: Callable[[], None] = lambda: None
        """Called when other inputs may be unmasked now."""
        self.reset()

    def reset(self) -> None:
        """All edges, nothing asserted, vectors from 0; firmware must initialise it."""
        self._lines = self._level_triggered = 0
        self._vector_base = 0
        self._auto_eoi = False
        self._rotate_on_auto_eoi = False
        self._begin_initialisation(0)
        self._icw_expected = 0
        self._update()

    @property
    def level_triggered(self) -> int:
        """Inputs that are level-triggered, one bit each (ELCR)."""
        return self._level_triggered

    @level_triggered.setter
    def level_triggered(self, inputs: int) -> None:
        self._level_triggered = inputs
        self._requests |= self._lines & inputs
        self._update()

    def set_irq(self, irq: int, level: bool) -> None:
        """Drive input ``irq`` (0 to 7). An edge is remembered until it is acknowledged."""
        bit = 1 << irq
        if not level:
            self._lines &= ~bit
            self._requests &= ~(bit & self._level_triggered)
        elif self._level_triggered & bit or not self._lines & bit:
            self._lines |= bit
            self._requests |= bit
        self._update()

    def enabled(self, irq: int) -> bool:
        """Whether input ``irq`` is unmasked."""
        return not self._mask >> irq & 1

    def is_requested(self, irq: int) -> bool:
        """Whether input ``irq`` waits to be acknowledged (IRR)."""
        return bool(self._requests >> irq & 1)

    def highest(self) -> int | None:
        """The input that interrupts now: unmasked, and above everything in service."""
        requests = self._requests & ~self._mask
        if not requests:
            return None
        in_service = self._in_service & ~self._mask if self._special_mask else self._in_service
        if self._fully_nested:
            in_service &= ~self._slaves
        best = self._priority(requests)
        return (best + self._top) & 7 if best < self._priority(in_service) else None

    def acknowledge(self) -> int:
        """The INTA cycle: the input that goes into service, or 7 if the request has gone."""
        irq = self.highest()
        if irq is None:
            return SPURIOUS_IRQ
        bit = 1 << irq
        if not self._level_triggered & bit:
            self._requests &= ~bit
        if not self._auto_eoi:
            self._in_service |= bit
        elif self._rotate_on_auto_eoi:
            self._top = irq + 1 & 7
        self._update()
        return irq

    def vector(self, irq: int) -> int:
        """What the chip puts on the bus for input ``irq``."""
        return self._vector_base | irq

    def read_port(self, offset: int, size: int) -> int | None:
        """IMR, or IRR or ISR as OCW3 chose, or the answer to a poll."""
        if size != 1:
            return None
        if not offset or self._poll:
            self.refresh()
        if self._poll:
            self._poll = False
            asking = self.highest() is not None
            return 0x80 | self.acknowledge() if asking else 0
        if offset:
            return self._mask
        return self._in_service if self._read_in_service else self._requests

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """ICW1 to ICW4 and OCW1 to OCW3."""
        if size != 1:
            return False
        if offset:
            self._write_data(value)
        elif value & ICW1:
            self._begin_initialisation(value)
        elif value & OCW3:
            self._write_ocw3(value)
        else:
            self._write_ocw2(value)
        self._update()
        return True

    def _begin_initialisation(self, icw1: int) -> None:
        self._icw4_needed = bool(icw1 & ICW1_NEEDS_ICW4)
        self._icw_expected = 2
        self._mask = self._in_service = 0
        self._requests = self._lines & self._level_triggered
        self._top = 0
        self._special_mask = self._read_in_service = self._poll = self._auto_eoi = False
        self._fully_nested = False

    def _write_data(self, value: int) -> None:
        match self._icw_expected:
            case 2:
                self._vector_base = value & 0xF8
                self._icw_expected = 3
            case 3:
                self._icw_expected = 4 if self._icw4_needed else 0
            case 4:
                self._auto_eoi = bool(value & ICW4_AUTO_EOI)
                self._fully_nested = bool(value & ICW4_FULLY_NESTED)
                self._icw_expected = 0
            case _:
                self._mask = value
                self.mask_written()

    def _write_ocw2(self, value: int) -> None:
        irq = value & 7
        match value & (OCW2_ROTATE | OCW2_SPECIFIC | OCW2_EOI):
            case 0x00 | 0x80:
                self._rotate_on_auto_eoi = bool(value & OCW2_ROTATE)
            case 0x20 | 0xA0:
                self._end_of_interrupt(bool(value & OCW2_ROTATE))
            case 0x60:
                self._in_service &= ~(1 << irq)
            case 0xC0:
                self._top = irq + 1 & 7
            case 0xE0:
                self._in_service &= ~(1 << irq)
                self._top = irq + 1 & 7

    def _end_of_interrupt(self, rotate: bool) -> None:
        if not self._in_service:
            return
        irq = (self._priority(self._in_service) + self._top) & 7
        self._in_service &= ~(1 << irq)
        if rotate:
            self._top = irq + 1 & 7

    def _write_ocw3(self, value: int) -> None:
        self._poll = bool(value & OCW3_POLL)
        if value & OCW3_READ_SELECT:
            self._read_in_service = bool(value & OCW3_READ_ISR)
        if value & OCW3_SPECIAL_SELECT:
            self._special_mask = bool(value & OCW3_SPECIAL)

    def _priority(self, inputs: int) -> int:
        """Rank of the best of ``inputs``: 0 is highest, 8 if there are none."""
        rotated = (inputs | inputs << 8) >> self._top & 0xFF
        return (rotated & -rotated).bit_length() - 1 if rotated else 8

    def _update(self) -> None:
        self._output(self.highest() is not None)


class ElcrPorts:
    """Ports 0x4D0 and 0x4D1: which inputs are level-triggered."""

    def __init__(self, master: I8259, slave: I8259) -> None:
        self._chips = ((master, MASTER_ELCR_MASK), (slave, SLAVE_ELCR_MASK))

    def read_port(self, offset: int, size: int) -> int | None:
        """One chip's register."""
        return self._chips[offset][0].level_triggered if size == 1 else None

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """One chip's register."""
        if size != 1:
            return False
        chip, mask = self._chips[offset]
        chip.level_triggered = value & mask
        return True


class PicPair:
    """Master (ports 0x20, 0x21), slave (0xA0, 0xA1) on its input 2, and the ``elcr`` ports (0x4D0, 0x4D1)."""

    def __init__(self) -> None:
        self._interrupt = False
        self.output: IrqLine = lambda level: None
        """The wire of the INT pin."""
        self.master = I8259(self._set_interrupt, slaves=1 << CASCADE_IRQ)
        self.slave = I8259(lambda level: self.master.set_irq(CASCADE_IRQ, level))
        self.elcr = ElcrPorts(self.master, self.slave)

    def reset(self) -> None:
        """Both chips uninitialised."""
        self.slave.reset()
        self.master.reset()

    def set_irq(self, irq: int, level: bool) -> None:
        """Drive ISA interrupt ``irq`` (0 to 15)."""
        if irq < 8:
            self.master.set_irq(irq, level)
        else:
            self.slave.set_irq(irq - 8, level)

    def enabled(self, irq: int) -> bool:
        """Whether ISA interrupt ``irq`` is unmasked."""
        if irq < 8:
            return self.master.enabled(irq)
        return self.slave.enabled(irq - 8) and self.master.enabled(CASCADE_IRQ)

    def pending(self) -> bool:
        """Whether the INT pin to the CPU is asserted."""
        return self._interrupt

    def acknowledge(self) -> int:
        """The vector of the INTA cycle, a spurious one if no request is left."""
        irq = self.master.acknowledge()
        if irq == CASCADE_IRQ:
            return self.slave.vector(self.slave.acknowledge())
        return self.master.vector(irq)

    def _set_interrupt(self, level: bool) -> None:
        self._interrupt = level
        self.output(level)
