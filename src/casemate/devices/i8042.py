"""The i8042 with a keyboard that nobody types on (IBM PS/2 Hardware Technical Reference, keyboard)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.devices.device import IrqLine


DATA_PORT, COMMAND_PORT = 0, 4
STATUS_OUTPUT_FULL, STATUS_SYSTEM, STATUS_COMMAND, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
MODE_KEYBOARD_INTERRUPT, MODE_SYSTEM, MODE_KEYBOARD_OFF = 0x01, 0x04, 0x10
OUTPUT_PORT_RUN, OUTPUT_PORT_A20 = 0x01, 0x02

ACK = 0xFA
SELF_TEST_PASSED, INTERFACE_WORKS, INTERFACE_CLOCK_LOW = 0x55, 0x00, 0x01
KEYBOARD_SELF_TEST_PASSED = 0xAA
KEYBOARD_ID = (0xAB, 0x83)


class Command:
    """Controller commands, written to port 0x64."""

    READ_MODE = 0x20
    WRITE_MODE = 0x60
    TEST_MOUSE_INTERFACE = 0xA9
    SELF_TEST = 0xAA
    TEST_KEYBOARD_INTERFACE = 0xAB
    KEYBOARD_OFF = 0xAD
    KEYBOARD_ON = 0xAE
    READ_OUTPUT_PORT = 0xD0
    WRITE_OUTPUT_PORT = 0xD1
    ECHO_AS_KEYBOARD = 0xD2
    ECHO_AS_MOUSE = 0xD3
    WRITE_MOUSE = 0xD4
    PULSE = 0xF0


TAKES_DATA = frozenset(
    {
        Command.WRITE_MODE,
        Command.WRITE_OUTPUT_PORT,
        Command.ECHO_AS_KEYBOARD,
        Command.ECHO_AS_MOUSE,
        Command.WRITE_MOUSE,
    }
)


class KeyboardCommand:
    """Keyboard commands whose answer is more than an acknowledgement."""

    SET_LEDS = 0xED
    ECHO = 0xEE
    SCAN_CODE_SET = 0xF0
    IDENTIFY = 0xF2
    SET_RATE = 0xF3
    RESET = 0xFF


class I8042:
    """Ports 0x60 (offset 0) and 0x64 (offset 4); there is no mouse.

    ``reset_machine`` is called when the guest pulses the CPU's reset line; ``irq`` is IRQ 1.
    """

    def __init__(self, reset_machine: Callable[[], None], irq: IrqLine) -> None:
        self._reset_machine = reset_machine
        self._irq = irq
        self._output: deque[int] = deque()
        self.reset()

    def reset(self) -> None:
        """Not tested yet, interrupts off."""
        self._output.clear()
        self._mode = 0
        self._last_was_command = False
        self._expects: int | None = None
        self._keyboard_expects: int | None = None
        self._output_port = OUTPUT_PORT_RUN | OUTPUT_PORT_A20
        self._irq(False)

    def read_port(self, offset: int, size: int) -> int | None:
        """A byte for the host, or the status."""
        if offset == COMMAND_PORT:
            return self._status()
        if offset != DATA_PORT or size != 1:
            return None
        value = self._output.popleft() if self._output else 0
        self._irq(False)
        self._update_irq()
        return value

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """A byte for the keyboard or a command's operand, or a command."""
        if size != 1 or offset not in (DATA_PORT, COMMAND_PORT):
            return False
        self._last_was_command = offset == COMMAND_PORT
        if offset == COMMAND_PORT:
            self._run(value)
        elif self._expects is not None:
            command, self._expects = self._expects, None
            self._take_operand(command, value)
        else:
            self._tell_keyboard(value)
        self._update_irq()
        return True

    def _status(self) -> int:
        status = STATUS_UNLOCKED | self._mode & STATUS_SYSTEM
        if self._last_was_command:
            status |= STATUS_COMMAND
        return status | STATUS_OUTPUT_FULL if self._output else status

    def _run(self, command: int) -> None:
        self._expects = command if command in TAKES_DATA else None
        match command:
            case Command.READ_MODE:
                self._output.append(self._mode)
            case Command.SELF_TEST:
                self._mode |= MODE_SYSTEM
                self._output.append(SELF_TEST_PASSED)
            case Command.TEST_KEYBOARD_INTERFACE:
                self._output.append(INTERFACE_WORKS)
            case Command.TEST_MOUSE_INTERFACE:
                self._output.append(INTERFACE_CLOCK_LOW)
            case Command.KEYBOARD_OFF:
                self._mode |= MODE_KEYBOARD_OFF
            case Command.KEYBOARD_ON:
                self._mode &= ~MODE_KEYBOARD_OFF
            case Command.READ_OUTPUT_PORT:
                self._output.append(self._output_port)
            case _ if command & 0xF1 == Command.PULSE:
                self._reset_machine()

    def _take_operand(self, command: int, value: int) -> None:
        match command:
            case Command.WRITE_MODE:
                self._mode = value
            case Command.WRITE_OUTPUT_PORT:
                self._output_port = value
                if not value & OUTPUT_PORT_RUN:
                    self._reset_machine()
            case Command.ECHO_AS_KEYBOARD | Command.ECHO_AS_MOUSE:
                self._output.append(value)

    def _tell_keyboard(self, value: int) -> None:
        if self._keyboard_expects is not None:
            command, self._keyboard_expects = self._keyboard_expects, None
            asks_set = command == KeyboardCommand.SCAN_CODE_SET and value == 0
            self._output.extend((ACK, 2) if asks_set else (ACK,))
            return
        match value:
            case KeyboardCommand.RESET:
                self._output.extend((ACK, KEYBOARD_SELF_TEST_PASSED))
            case KeyboardCommand.IDENTIFY:
                self._output.extend((ACK, *KEYBOARD_ID))
            case KeyboardCommand.ECHO:
                self._output.append(KeyboardCommand.ECHO)
            case _:
                self._output.append(ACK)
                if value in (
                    KeyboardCommand.SET_LEDS,
                    KeyboardCommand.SCAN_CODE_SET,
                    KeyboardCommand.SET_RATE,
                ):
                    self._keyboard_expects = value

    def _update_irq(self) -> None:
        if self._output and self._mode & MODE_KEYBOARD_INTERRUPT:
            self._irq(True)
