"""The user's terminal: the guest's console, and lines that show progress (termios(3), console_codes(4))."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, TypeVar

from casemate.cli.parser import terminal_width

if TYPE_CHECKING:
    from casemate.machine.console import Console

ESCAPE_KEY = 0x01
"""Ctrl-A, as QEMU has it: followed by X it leaves, by itself it goes to the guest, by H it helps."""

_CLEAR_LINE = "\r\x1b[K"
_PLAIN = "\x1b[0m"
_COLOURS = {"red": 31, "green": 32, "yellow": 33, "cyan": 36}
_REDRAWN_SECONDS = 0.1
_Item = TypeVar("_Item")

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


def width_of(stream: TextIO) -> int | None:
    """Columns of the terminal behind ``stream``; None where there is none."""
    return terminal_width() if stream.isatty() else None


def wrapped(text: str, width: int | None, indent: str = "") -> str:
    """``text`` with lines of at most ``width``, broken at spaces; what goes on is indented by ``indent``."""
    if width is None:
        return text
    import textwrap

    lines = (
        textwrap.wrap(line, max(width - 1, 20), subsequent_indent=indent, break_on_hyphens=False) or [""]
        for line in text.split("\n")
    )
    return "\n".join(part for parts in lines for part in parts)


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """``text`` in a colour, if ``stream`` is a terminal and NO_COLOR is not set."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}{_PLAIN}"


def progress(items: Iterable[_Item], total: int, what: str) -> Iterator[_Item]:
    """The items; at a terminal a line on standard error counts them, with an estimate of the time that is left."""
    started = shown = time.monotonic()
    shows = sys.stderr.isatty()
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if shows and now - shown >= _REDRAWN_SECONDS:
                shown = now
                left = f", about {(now - started) / done * (total - done):.0f} s left" if done else ""
                line = f"casemate: {what}: {done} of {total}{left}"
                print(_CLEAR_LINE + line, end="", file=sys.stderr, flush=True)
            yield item
    finally:
        if shows and shown != started:
            print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)


class StatusLine:
    """One line on a terminal's standard error that shows the phase, of ``phases``, until the guest prints something.

    It is the only writer of that terminal while a guest runs: messages and the guest's output go through it.
    """

    def __init__(self, phases: tuple[str, ...]) -> None:
        self._phases = phases
        self._enabled = sys.stderr.isatty()
        self._shares = self._enabled and sys.stdout.isatty()
        self._shown = self._phase = ""
        self._started = time.monotonic()
        self._at_line_start = True
        self._lock = threading.Lock()
        self.phase(phases[0])

    def phase(self, name: str) -> None:
        """The guest reached a phase."""
        self._phase = name
        self.tick()

    def tick(self) -> None:
        """Show the phase and how many seconds have passed; called now and then."""
        phases = " ".join(f"[{phase}]" if phase == self._phase else phase for phase in self._phases)
        line = f"casemate: {phases}  {time.monotonic() - self._started:.0f} s "
        with self._lock:
            if self._enabled and line != self._shown:
                self._shown = line
                self._write(_CLEAR_LINE + line)

    def say(self, text: str) -> None:
        """Print a message above the line."""
        with self._lock:
            self._write((_CLEAR_LINE if self._shown else "") + wrapped(text, width_of(sys.stderr)) + "\n")
            if self._shown:
                self._write(self._shown)

    def close(self) -> None:
        """Give the line back; what is printed next begins on a line of its own, in the terminal's own colours."""
        with self._lock:
            if self._shown:
                self._write(_CLEAR_LINE)
            if not self._at_line_start:
                self._write(_PLAIN + "\n")
            self._shown, self._enabled, self._at_line_start = "", False, True

    def before(self, output: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """``output``, with the line given up before the first byte if both go to a terminal."""
        if not self._shares:
            return output

        def write(data: bytes) -> None:
            if self._shown:
                with self._lock:
                    self._write(_CLEAR_LINE)
                    self._shown, self._enabled = "", False
            output(data)
            self._at_line_start = data.endswith(b"\n")

        return write

    def _write(self, text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)
