"""The user's terminal as the guest's console: raw while the guest runs, restored whatever happens (termios(3))."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from casemate.machine.console import Console

ESCAPE_KEY = 0x01
"""Ctrl-A, as QEMU has it: followed by X it leaves, by itself it goes to the guest, by H it helps."""

HELP = b"\r\nCtrl-A X leaves, Ctrl-A A and Ctrl-A C send Ctrl-A and Ctrl-C, Ctrl-C ends the run\r\n"


class Keyboard:
    """Splits what is typed into input for the guest and commands to casemate."""

    def __init__(self, console: Callable[[], Console], leave: Callable[[], None]) -> None:
        self._console = console
        self._leave = leave
        self._escaped = False

    def typed(self, data: bytes) -> None:
        """Take what came from the terminal."""
        plain = bytearray()
        for key in data:
            if not self._escaped and key == ESCAPE_KEY:
                self._escaped = True
            elif self._escaped:
                self._escaped = False
                plain += self._command(key)
            else:
                plain.append(key)
        if plain:
            self._console().type(bytes(plain))

    def _command(self, key: int) -> bytes:
        letter = chr(key).lower()
        if letter == "x":
            self._leave()
        elif letter == "h":
            os.write(sys.stdout.fileno(), HELP)
        elif letter == "a" or key == ESCAPE_KEY:
            return bytes((ESCAPE_KEY,))
        elif letter == "c":
            return b"\x03"
        return b""

    def wait(self, finished: threading.Event, seconds: float) -> None:
        """Pass keys on for some time, or until the run is finished."""
        ready, _, _ = select.select([sys.stdin], [], [], min(seconds, 0.05))
        if ready and not finished.is_set():
            data = os.read(sys.stdin.fileno(), 1024)
            if data:
                self.typed(data)
            else:
                self._leave()


def is_interactive() -> bool:
    """Whether somebody sits at standard input and output."""
    return sys.stdin.isatty() and sys.stdout.isatty()


@contextmanager
def raw_terminal() -> Iterator[None]:
    """Standard input without line editing, echo and signals but Ctrl-C; as it was before when left."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)
        mode = termios.tcgetattr(fd)
        mode[1] |= termios.OPOST
        mode[3] |= termios.ISIG
        termios.tcsetattr(fd, termios.TCSANOW, mode)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
