"""Serial port: what a driver sees byte by byte, and the order of its interrupts."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from casemate.devices.serial.uart16550 import FIFO_SIZE, Ier, Iir, Register, Uart16550
from casemate.testing.manual_clock import ManualClock

NO_INTERRUPT = 0x01
OUT2 = 0x08
LOOPBACK = 0x10


class Port:
    """A port with its output and its interrupt line in view."""

    def __init__(self, mcr: int = OUT2, clock: ManualClock | None = None) -> None:
        self.sent = bytearray()
        self.line = False
        self.uart = Uart16550(self.sent.append, self.drive, clock)
        self.write(Register.MCR, mcr)

    def drive(self, level: bool) -> None:
        assert level != self.line, "the line was driven to the level it had"
        self.line = level

    def read(self, register: int) -> int:
        value = self.uart.read_port(register, 1)
        assert value is not None
        return value

    def write(self, register: int, value: int) -> None:
        assert self.uart.write_port(register, 1, value)

    def iir(self) -> int:
        return self.read(Register.IIR_FCR) & 0x0F


def test_uart_registers_lie_where_drivers_expect_them() -> None:
    names = ("DATA", "IER", "IIR_FCR", "LCR", "MCR", "LSR", "MSR", "SCR")
    assert [getattr(Register, name) for name in names] == list(range(8))
    assert (Ier.RECEIVED, Ier.TRANSMIT_EMPTY, Ier.LINE_STATUS, Ier.MODEM_STATUS) == (1, 2, 4, 8)
    sources = (Iir.MODEM_STATUS, Iir.NONE, Iir.TRANSMIT_EMPTY, Iir.RECEIVED, Iir.CHARACTER_TIMEOUT)
    assert sources == (0x0, 0x1, 0x2, 0x4, 0xC)


def test_uart_sends_bytes_at_once_and_is_always_ready() -> None:
    port = Port()
    for byte in b"BdsDxe":
        assert port.read(Register.LSR) == 0x60
        port.write(Register.DATA, byte)
    assert port.sent == b"BdsDxe"


def test_uart_receives_in_order_across_many_fifos() -> None:
    port = Port()
    port.write(Register.IIR_FCR, 0x01)
    text = bytes(range(256)) * 3
    port.uart.feed(text)
    received = bytearray()
    while port.read(Register.LSR) & 1:
        received.append(port.read(Register.DATA))
    assert received == text
    assert port.read(Register.DATA) == 0


def test_uart_divisor_latch_hides_data_and_interrupt_enable() -> None:
    port = Port()
    port.write(Register.IER, 0x05)
    port.write(Register.LCR, 0x83)
    port.write(0, 0x34)
    port.write(1, 0x12)
    assert (port.read(0), port.read(1)) == (0x34, 0x12)
    port.write(Register.LCR, 0x03)
    assert port.read(Register.IER) == 0x05
    assert not port.sent


def test_uart_is_identified_as_16550a_with_scratch() -> None:
    port = Port()
    assert port.read(Register.IIR_FCR) == NO_INTERRUPT
    port.write(Register.IIR_FCR, 0x01)
    assert port.read(Register.IIR_FCR) == 0xC0 | NO_INTERRUPT
    port.write(Register.SCR, 0xA5)
    assert port.read(Register.SCR) == 0xA5


@pytest.mark.parametrize("mcr", range(16))
def test_uart_loopback_shows_modem_outputs_as_inputs(mcr: int) -> None:
    port = Port(mcr | LOOPBACK)
    dtr, rts, out1, out2 = (mcr >> bit & 1 for bit in range(4))
    assert port.read(Register.MSR) & 0xF0 == rts << 4 | dtr << 5 | out1 << 6 | out2 << 7


def test_uart_modem_status_is_connected_and_deltas_clear_when_read() -> None:
    port = Port()
    assert port.read(Register.MSR) == 0xB0
    port.write(Register.MCR, LOOPBACK)
    assert port.read(Register.MSR) == 0x0B
    assert port.read(Register.MSR) == 0x00
    port.write(Register.MCR, OUT2)
    assert port.read(Register.MSR) == 0xBB


def test_uart_loopback_returns_bytes_and_keeps_them_off_the_wire() -> None:
    port = Port(LOOPBACK)
    port.write(Register.IIR_FCR, 0x01)
    port.uart.feed(b"typed")
    for byte in range(FIFO_SIZE + 4):
        port.write(Register.DATA, byte)
    assert [port.read(Register.DATA) for _ in range(FIFO_SIZE)] == list(range(FIFO_SIZE))
    assert not port.sent
    assert not port.read(Register.LSR) & 1
    port.write(Register.MCR, OUT2)
    assert port.read(Register.LSR) & 1
    assert port.read(Register.DATA) == ord("t")


def test_uart_clearing_the_fifo_drops_only_what_arrived() -> None:
    port = Port()
    port.write(Register.IIR_FCR, 0x01)
    port.uart.feed(bytes(range(FIFO_SIZE + 1)))
    port.uart.poll()
    port.write(Register.IIR_FCR, 0x03)
    assert port.read(Register.DATA) == FIFO_SIZE


def test_uart_changing_the_trigger_level_keeps_what_arrived() -> None:
    port = Port()
    port.write(Register.IIR_FCR, 0x01)
    port.uart.feed(b"ab")
    port.uart.poll()
    port.write(Register.IIR_FCR, 0xC1)
    assert port.read(Register.DATA) == ord("a")
    port.write(Register.IIR_FCR, 0x00)
    assert not port.read(Register.LSR) & 1, "turning the FIFOs off clears them"


def test_uart_transmit_interrupt_comes_when_enabled_and_goes_when_identified() -> None:
    port = Port()
    assert not port.line
    port.write(Register.IER, Ier.TRANSMIT_EMPTY)
    assert port.line
    assert port.iir() == Iir.TRANSMIT_EMPTY
    assert not port.line
    assert port.iir() == NO_INTERRUPT


def test_uart_transmit_interrupt_comes_again_after_each_byte() -> None:
    port = Port()
    port.write(Register.IER, Ier.TRANSMIT_EMPTY)
    for byte in b"tty":
        assert port.iir() == Iir.TRANSMIT_EMPTY
        assert not port.line
        port.write(Register.DATA, byte)
        assert port.line


def test_uart_transmit_interrupt_stays_away_while_disabled() -> None:
    port = Port()
    port.write(Register.DATA, 0x41)
    assert not port.line
    assert port.iir() == NO_INTERRUPT


def test_uart_transmit_interrupt_is_not_repeated_by_rewriting_the_enable() -> None:
    port = Port()
    port.write(Register.IER, Ier.TRANSMIT_EMPTY)
    assert port.iir() == Iir.TRANSMIT_EMPTY
    port.write(Register.IER, Ier.TRANSMIT_EMPTY | Ier.RECEIVED)
    assert not port.line


def test_uart_received_data_outranks_transmit_which_outranks_modem_status() -> None:
    port = Port()
    port.write(Register.MCR, LOOPBACK)
    port.write(Register.MCR, OUT2)
    port.uart.feed(b"x")
    port.uart.poll()
    port.write(Register.IER, 0x0F)
    assert port.iir() == Iir.RECEIVED
    assert port.line
    port.read(Register.DATA)
    assert port.iir() == Iir.TRANSMIT_EMPTY
    assert port.iir() == Iir.MODEM_STATUS
    assert port.line
    port.read(Register.MSR)
    assert port.iir() == NO_INTERRUPT
    assert not port.line


@pytest.mark.parametrize(("fcr", "trigger"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
def test_uart_receive_interrupt_tells_trigger_level_from_timeout(fcr: int, trigger: int) -> None:
    port = Port()
    port.write(Register.IIR_FCR, fcr)
    port.write(Register.IER, Ier.RECEIVED)
    for count in range(1, FIFO_SIZE + 1):
        port.uart.feed(b"x")
        port.uart.poll()
        assert port.iir() == (Iir.RECEIVED if count >= trigger else Iir.CHARACTER_TIMEOUT)
        assert port.line


def test_uart_feed_alone_does_not_touch_the_interrupt_line() -> None:
    port = Port()
    port.write(Register.IER, Ier.RECEIVED)
    port.uart.feed(b"x")
    assert not port.line
    port.uart.poll()
    assert port.line


@pytest.mark.parametrize("mcr", [0x00, 0x07, LOOPBACK | OUT2])
def test_uart_interrupts_need_out2_and_no_loopback(mcr: int) -> None:
    port = Port(mcr)
    port.write(Register.IER, Ier.TRANSMIT_EMPTY)
    assert not port.line
    port.write(Register.MCR, OUT2)
    assert port.line


def test_uart_refuses_wide_accesses() -> None:
    port = Port()
    assert port.uart.read_port(Register.DATA, 2) is None
    assert not port.uart.write_port(Register.DATA, 4, 0x41)
    assert not port.sent


def test_uart_reset_drops_the_interrupt_and_keeps_waiting_input() -> None:
    port = Port()
    port.write(Register.IER, Ier.TRANSMIT_EMPTY)
    port.uart.feed(b"y")
    port.uart.reset()
    assert not port.line
    assert port.read(Register.DATA) == 0
    assert port.read(Register.LSR) & 1
    assert port.read(Register.DATA) == ord("y")


class UartMachine(RuleBasedStateMachine):
    """Any driver, any input: no byte is lost or invented while the FIFO is never cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.port = Port()
        self.port.write(Register.IIR_FCR, 0x81)
        self.typed = bytearray()
        self.received = bytearray()
        self.written = bytearray()

    @rule(data=st.binary(max_size=40))
    def feed(self, data: bytes) -> None:
        self.port.uart.feed(data)
        self.typed += data

    @rule()
    def poll(self) -> None:
        self.port.uart.poll()

    @rule()
    def read(self) -> None:
        if self.port.read(Register.LSR) & 1:
            self.received.append(self.port.read(Register.DATA))

    @rule(byte=st.integers(0, 255))
    def send(self, byte: int) -> None:
        self.port.write(Register.DATA, byte)
        self.written.append(byte)

    @rule(value=st.integers(0, 15))
    def enable(self, value: int) -> None:
        self.port.write(Register.IER, value)

    @rule(register=st.sampled_from([Register.IIR_FCR, Register.MSR, Register.LCR, Register.SCR]))
    def look(self, register: int) -> None:
        self.port.read(register)

    @invariant()
    def bytes_are_kept_in_order(self) -> None:
        assert self.typed.startswith(self.received)
        assert self.port.sent == self.written

    @invariant()
    def line_says_what_iir_says(self) -> None:
        line = self.port.line
        source = self.port.iir()
        assert line == (source != NO_INTERRUPT)


TestUartMachine = UartMachine.TestCase


FULL_NS, BYTE_NS = 16 * 173_611, 173_611


@pytest.mark.parametrize(("fcr", "time"), [(0x01, FULL_NS), (0x00, BYTE_NS)], ids=["fifo", "no-fifo"])
def test_uart_with_a_clock_asks_for_more_when_a_full_transmitter_had_sent(fcr: int, time: int) -> None:
    clock = ManualClock()
    port = Port(clock=clock)
    port.write(Register.IIR_FCR, fcr)
    port.write(Register.IER, Ier.TRANSMIT_EMPTY)
    assert port.line, "it is empty to begin with"
    assert port.iir() == Iir.TRANSMIT_EMPTY
    port.write(Register.DATA, 0x61)
    assert port.sent == b"a"
    assert port.read(Register.LSR) == 0x60, "who asks may go on at once"
    assert not port.line
    assert port.uart.deadline() == time
    clock.time = time - 1
    port.uart.poll()
    assert not port.line
    clock.time = time
    port.uart.poll()
    assert port.line
    assert port.uart.deadline() is None
    assert port.iir() == Iir.TRANSMIT_EMPTY
    assert not port.line


def test_uart_that_is_still_sending_interrupts_for_input_at_once() -> None:
    port = Port(clock=ManualClock())
    port.write(Register.IER, Ier.TRANSMIT_EMPTY | Ier.RECEIVED)
    port.iir()
    port.write(Register.DATA, 0x61)
    assert not port.line
    port.uart.feed(b"x")
    port.uart.poll()
    assert port.line
    assert port.read(Register.DATA) == ord("x")
    assert not port.line
    assert port.uart.deadline() is not None
