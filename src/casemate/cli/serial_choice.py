"""Where ``casemate boot`` puts the guest's serial port, and files that take its output (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.cli.terminal import is_interactive
from casemate.errors import HostError, SpecError

if TYPE_CHECKING:
    from typing import Self

    from casemate.cli.serial_line import SerialLine
    from casemate.machine.machine import Machine


_READER_SECONDS = 0.1
"""How often a reader that does not read is asked about, and whether the run is over."""
_HELD_SECONDS = 0.005
_MOST_HELD = 4096


def is_stdio(args: argparse.Namespace) -> bool:
    """Whether the guest's serial port is on the standard streams."""
    return args.serial in (None, "stdio")


def somebody_types(args: argparse.Namespace) -> bool:
    """Whether a person is at the terminal and nothing else decides when the run ends."""

    return is_interactive() and not args.until and not args.type


def serial_line(args: argparse.Namespace, stack: ExitStack, started: list[Machine]) -> SerialLine | None:
    """The line of ``--serial pty|unix:PATH``; None for the others. Raises HostError."""
    kind, _, path = (args.serial or "").partition(":")
    if kind not in ("pty", "unix"):
        return None
    from casemate.cli.serial_line import SerialLine

    line = SerialLine(lambda: started[0].console)
    if kind == "pty":
        line.open_pty(stack)
    else:
        line.listen(path, stack)
    return line


def serial_output(
    args: argparse.Namespace, stack: ExitStack, started: list[Machine]
) -> Callable[[bytes], None] | None:
    """What takes the guest's output by ``--serial``; None if nothing does. Raises SpecError and HostError."""
    where = args.serial or ("none" if args.json else "stdio")
    if where == "none":
        return None
    if where == "stdio":
        if args.json:
            raise SpecError("--json and --serial stdio both want standard output", "use --serial file:PATH")
        return _stdout_output(lambda: bool(started) and started[0].state.ending is not None)
    kind, _, path = where.partition(":")
    if kind != "file" or not path:
        raise SpecError(f"--serial {where!r} is not known", "use stdio, none, file:PATH, pty or unix:PATH")

    return file_output(Path(path), stack)


def _stdout_output(has_ended: Callable[[], bool]) -> Callable[[bytes], None]:
    """Writes to standard output; the guest waits for a slow reader, until its run is over."""
    fd = sys.stdout.fileno()
    sys.stdout.flush()

    def write(data: bytes) -> None:
        while data:
            _, writable, _ = select.select((), (fd,), (), _READER_SECONDS)
            if writable:
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(fd, data) :]
            elif has_ended():
                return

    return write


class GatheredOutput:
    """Hands on what a guest prints by lines, and what is no line yet, such as a prompt, after 5 ms.

    Guests print byte by byte, and a write that wakes a reader takes as long as thousands of the guest's instructions.
    Use it as a context manager. What ``write`` raises comes out of ``put``, perhaps of a later one, or in the end.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._held = bytearray()
        self._writing = threading.Lock()
        self._holds = threading.Event()
        self._closed = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name="casemate-output", daemon=True)

    def put(self, data: bytes) -> None:
        """Take what was printed; called by one thread."""
        is_first = not self._held
        self._held += data
        if data.endswith(b"\n") or len(self._held) >= _MOST_HELD or self._error is not None:
            self._hand_on()
        elif is_first:
            self._holds.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._holds.set()
        self._thread.join()
        self._hand_on()

    def _hand_on(self) -> None:
        with self._writing:
            error, self._error = self._error, None
            if error is not None:
                raise error
            data = bytes(self._held)
            del self._held[: len(data)]
            if data:
                self._write(data)

    def _follow(self) -> None:
        while not self._closed.is_set():
            self._holds.wait()
            self._holds.clear()
            self._closed.wait(_HELD_SECONDS)
            try:
                self._hand_on()
            except Exception as error:
                self._error = error


def file_output(path: Path, stack: ExitStack) -> Callable[[bytes], None]:
    """Writes to the file, which ``stack`` closes. Raises HostError."""
    try:
        file = path.open("wb", buffering=0)
    except OSError as error:
        raise HostError("open", error.errno or 0, str(path), "choose a file that can be written") from error
    stack.enter_context(file)

    def write(data: bytes) -> None:
        try:
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            raise HostError("write", error.errno or 0, str(path), "make room on the disk") from error

    return write
