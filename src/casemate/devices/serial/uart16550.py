"""A 16550A serial port (National Semiconductor PC16550D data sheet, June 1995)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from casemate.host.clock import GuestClock

if TYPE_CHECKING:
    from casemate.devices.device import IrqLine

FIFO_SIZE = 16
BYTE_NS = 173_611
"""How long a byte, with a start and a stop bit, takes on a line of 57,600 baud."""
TRIGGER_LEVELS = (1, 4, 8, 14)


class Register:
    """Offsets; 0 and 1 are the divisor latch while LCR.DLAB is set, 2 reads IIR and writes FCR."""

    DATA = 0
    IER = 1
    IIR_FCR = 2
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7


class Ier:
    """Interrupt enables."""

    RECEIVED = 0x01
    TRANSMIT_EMPTY = 0x02
    LINE_STATUS = 0x04
    MODEM_STATUS = 0x08


class Iir:
    """Interrupt identification; this port has no line errors, so 0x06 never appears."""

    NONE = 0x01
    MODEM_STATUS = 0x00
    TRANSMIT_EMPTY = 0x02
    RECEIVED = 0x04
    CHARACTER_TIMEOUT = 0x0C


IIR_FIFOS_ENABLED = 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVE = 0x01, 0x02
LCR_DIVISOR_LATCH = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOPBACK = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DATA_READY, LSR_TRANSMITTER_IDLE = 0x01, 0x60
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_CONNECTED = MSR_DCD | MSR_DSR | MSR_CTS


class Uart16550:
    """Eight byte-wide registers; bytes leave at once, so the transmitter is always empty.

    ``output`` gets every byte that the guest sends; ``irq`` is the port's interrupt line, which OUT2 gates as
    on a PC. With ``clock`` the transmitter asks for more only after the time that a full one takes to send: an
    operating system that is asked again for each line does nothing else. ``feed`` may be called from any thread;
    everything else belongs to the vCPU's.
    """

    def __init__(self, output: Callable[[int], None], irq: IrqLine, clock: GuestClock | None = None) -> None:
        self._output = output
        self._irq = irq
        self._clock = clock
        self.on_timer: Callable[[int], None] = lambda time: None
        """Told when the interrupt comes that is held back; with FIFOs it is soon enough when somebody looks."""
        self._ready_at = 0
        self._line = self._holds_back = False
        self._waiting: deque[int] = deque()
        self._fifo: deque[int] = deque()
        self.reset()

    def reset(self) -> None:
        """Power-on state: 9600 baud divisor, interrupts off, FIFOs off; input not yet received is kept."""
        self._fifo.clear()
        self._divisor = 12
        self._full_ns = BYTE_NS
        self._ier = self._fcr = self._lcr = self._mcr = self._scr = 0
        self._msr = MSR_CONNECTED
        self._transmit_empty = False
        self._update_irq()

    def feed(self, data: bytes) -> None:
        """Put ``data`` on the wire to the guest; it waits here as long as the guest does not read."""
        self._waiting.extend(data)

    def poll(self) -> None:
        """Move waiting input into the FIFO and bring the interrupt line up to date."""
        if self._waiting:
            self._receive()
        elif self._holds_back:
            self._update_irq()

    def deadline(self) -> int | None:
        """Guest time at which the transmitter's interrupt comes that is held back, or None."""
        return self._ready_at if self._holds_back else None

    def read_port(self, offset: int, size: int) -> int | None:
        """A register; only bytes are served."""
        if offset == Register.LSR:
            if self._waiting:
                self._receive()
            return LSR_TRANSMITTER_IDLE | LSR_DATA_READY if self._fifo else LSR_TRANSMITTER_IDLE
        if size != 1:
            return None
        if offset <= Register.IER and self._lcr & LCR_DIVISOR_LATCH:
            return self._divisor >> 8 * offset & 0xFF
        match offset:
            case Register.DATA:
                return self._read_data()
            case Register.IER:
                return self._ier
            case Register.IIR_FCR:
                return self._read_iir()
            case Register.LCR:
                return self._lcr
            case Register.MCR:
                return self._mcr
            case Register.MSR:
                return self._read_msr()
            case Register.SCR:
                return self._scr
        return None

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """A register; LSR and MSR ignore writes."""
        if size != 1:
            return False
        if offset <= Register.IER and self._lcr & LCR_DIVISOR_LATCH:
            shift = 8 * offset
            self._divisor = self._divisor & ~(0xFF << shift) | value << shift
            return True
        match offset:
            case Register.DATA:
                self._write_data(value)
            case Register.IER:
                self._write_ier(value)
            case Register.IIR_FCR:
                self._write_fcr(value)
            case Register.LCR:
                self._lcr = value
            case Register.MCR:
                self._write_mcr(value)
            case Register.SCR:
                self._scr = value
        return True

    def _read_data(self) -> int:
        value = self._fifo.popleft() if self._fifo else 0
        self._receive()
        return value

    def _write_data(self, value: int) -> None:
        if not self._mcr & MCR_LOOPBACK:
            self._output(value)
        elif len(self._fifo) < self._capacity():
            self._fifo.append(value)
        self._transmit_empty = True
        if self._ier and not self._holds_back:
            if self._clock is not None:
                self._ready_at = self._clock.now() + self._full_ns
            self._update_irq()

    def _write_ier(self, value: int) -> None:
        enabled = value & ~self._ier
        self._ier = value & 0x0F
        if enabled & Ier.TRANSMIT_EMPTY:
            self._transmit_empty = True
        self._update_irq()

    def _write_fcr(self, value: int) -> None:
        if value & FCR_CLEAR_RECEIVE or (value ^ self._fcr) & FCR_ENABLE:
            self._fifo.clear()
        self._fcr = value
        self._full_ns = self._capacity() * BYTE_NS
        self._receive()

    def _write_mcr(self, value: int) -> None:
        self._mcr = value & 0x1F
        lines = self._modem_lines()
        changed = (lines ^ self._msr) & 0xF0
        # A ring indicator counts as changed only when it ends.
        if changed & MSR_RI and lines & MSR_RI:
            changed &= ~MSR_RI
        self._msr = lines | self._msr & 0x0F | changed >> 4
        self._update_irq()

    def _modem_lines(self) -> int:
        mcr = self._mcr
        if not mcr & MCR_LOOPBACK:
            return MSR_CONNECTED
        pairs = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
        return sum(line for out, line in pairs if mcr & out)

    def _read_msr(self) -> int:
        value = self._msr
        self._msr &= 0xF0
        self._update_irq()
        return value

    def _read_iir(self) -> int:
        source = self._interrupt_source()
        if source == Iir.TRANSMIT_EMPTY:
            self._transmit_empty = False
            self._update_irq()
        return source | (IIR_FIFOS_ENABLED if self._fcr & FCR_ENABLE else 0)

    def _interrupt_source(self) -> int:
        ier = self._ier
        if ier & Ier.RECEIVED and self._fifo:
            full = not self._fcr & FCR_ENABLE or len(self._fifo) >= TRIGGER_LEVELS[self._fcr >> 6]
            return Iir.RECEIVED if full else Iir.CHARACTER_TIMEOUT
        if ier & Ier.TRANSMIT_EMPTY and self._transmit_empty:
            return Iir.TRANSMIT_EMPTY
        if ier & Ier.MODEM_STATUS and self._msr & 0x0F:
            return Iir.MODEM_STATUS
        return Iir.NONE

    def _capacity(self) -> int:
        return FIFO_SIZE if self._fcr & FCR_ENABLE else 1

    def _receive(self) -> None:
        room = 0 if self._mcr & MCR_LOOPBACK else self._capacity() - len(self._fifo)
        while room > 0 and self._waiting:
            self._fifo.append(self._waiting.popleft())
            room -= 1
        self._update_irq()

    def _update_irq(self) -> None:
        connected = self._mcr & (MCR_OUT2 | MCR_LOOPBACK) == MCR_OUT2
        source = self._interrupt_source() if connected else Iir.NONE
        held_back = self._holds_back
        self._holds_back = source == Iir.TRANSMIT_EMPTY and self._is_too_early()
        if self._holds_back and not held_back and not self._fcr & FCR_ENABLE:
            self.on_timer(self._ready_at)
        line = source != Iir.NONE and not self._holds_back
        if line != self._line:
            self._line = line
            self._irq(line)

    def _is_too_early(self) -> bool:
        """Whether what was sent last would still be on the line."""
        return self._clock is not None and self._clock.now() < self._ready_at
