"""Keyboard controller: the self tests, a keyboard that answers, IRQ 1, and the reset line."""

from __future__ import annotations

import pytest

from casemate.devices.i8042 import I8042

FULL, SYSTEM, COMMAND = 0x01, 0x04, 0x08


class Controller:
    def __init__(self) -> None:
        self.resets = 0
        self.line = False
        self.edges = 0
        self.i8042 = I8042(self.reset, self.drive)

    def reset(self) -> None:
        self.resets += 1

    def drive(self, level: bool) -> None:
        self.edges += level and not self.line
        self.line = level

    def command(self, value: int, *operands: int) -> list[int]:
        assert self.i8042.write_port(4, 1, value)
        return [byte for operand in operands for byte in self.data(operand)] if operands else self.drain()

    def data(self, value: int) -> list[int]:
        assert self.i8042.write_port(0, 1, value)
        return self.drain()

    def status(self) -> int:
        value = self.i8042.read_port(4, 1)
        assert value is not None
        return value

    def drain(self) -> list[int]:
        answer = []
        while self.status() & FULL:
            byte = self.i8042.read_port(0, 1)
            assert byte is not None
            answer.append(byte)
        return answer


def test_status_is_never_all_ones_and_tells_command_from_data() -> None:
    controller = Controller()
    assert controller.status() == 0x10
    controller.command(0xAA)
    assert controller.status() == 0x10 | SYSTEM | COMMAND
    controller.data(0xF4)
    assert controller.status() == 0x10 | SYSTEM


@pytest.mark.parametrize(
    ("command", "operands", "answer"),
    [
        (0xAA, (), [0x55]),
        (0xAB, (), [0x00]),
        (0xA9, (), [0x01]),
        (0xD0, (), [0x03]),
        (0xD2, (0x1C,), [0x1C]),
        (0xD3, (0x5A,), [0x5A]),
        (0xD4, (0xFF,), []),
        (0x77, (), []),
    ],
)
def test_controller_commands_answer(command: int, operands: tuple[int, ...], answer: list[int]) -> None:
    assert Controller().command(command, *operands) == answer


def test_command_byte_reads_back_with_keyboard_enable_and_disable() -> None:
    controller = Controller()
    controller.command(0x60, 0x47)
    assert controller.command(0x20) == [0x47]
    controller.command(0xAD)
    assert controller.command(0x20) == [0x57]
    controller.command(0xAE)
    assert controller.command(0x20) == [0x47]


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ((0xFF,), [0xFA, 0xAA]),
        ((0xF2,), [0xFA, 0xAB, 0x83]),
        ((0xEE,), [0xEE]),
        ((0xF4,), [0xFA]),
        ((0xF5,), [0xFA]),
        ((0xED, 0x02), [0xFA, 0xFA]),
        ((0xF3, 0xFF), [0xFA, 0xFA]),
        ((0xF0, 0x02), [0xFA, 0xFA]),
        ((0xF0, 0x00), [0xFA, 0xFA, 0x02]),
    ],
)
def test_keyboard_commands_answer(sent: tuple[int, ...], answer: list[int]) -> None:
    controller = Controller()
    assert [byte for value in sent for byte in controller.data(value)] == answer


def test_keyboard_interrupt_comes_for_each_byte_if_enabled() -> None:
    controller = Controller()
    controller.i8042.write_port(0, 1, 0xF2)
    assert not controller.line
    controller.drain()
    controller.command(0x60, 0x01)
    controller.data(0xF2)
    assert controller.edges == 3
    assert not controller.line


@pytest.mark.parametrize(("command", "resets"), [(0xFE, 1), (0xF0, 1), (0xFF, 0), (0xFD, 0)])
def test_pulse_of_line_0_resets(command: int, resets: int) -> None:
    controller = Controller()
    controller.command(command)
    assert controller.resets == resets


def test_output_port_write_resets_only_when_the_line_goes_low() -> None:
    controller = Controller()
    controller.command(0xD1, 0xDF)
    assert controller.resets == 0
    assert controller.command(0xD0) == [0xDF]
    controller.command(0xD1, 0xDE)
    assert controller.resets == 1


def test_command_takes_back_a_half_given_one() -> None:
    controller = Controller()
    controller.command(0x60)
    controller.command(0xAE)
    assert controller.data(0xF4) == [0xFA]
    assert controller.command(0x20) == [0x00]


def test_reset_forgets_answers() -> None:
    controller = Controller()
    controller.i8042.write_port(4, 1, 0xAA)
    controller.i8042.reset()
    assert controller.status() == 0x10
    assert controller.i8042.read_port(0, 1) == 0


def test_reset_lowers_the_interrupt_line() -> None:
    controller = Controller()
    controller.command(0x60, 0x01)
    controller.i8042.write_port(0, 1, 0xF4)
    assert controller.line
    controller.i8042.reset()
    assert not controller.line


def test_other_ports_and_widths_are_not_there() -> None:
    controller = Controller()
    assert controller.i8042.read_port(1, 1) is None
    assert controller.i8042.read_port(0, 2) is None
    assert not controller.i8042.write_port(2, 1, 0)
    assert not controller.i8042.write_port(4, 2, 0xFE)
    assert controller.resets == 0
