"""The guest's serial port on a pseudo-terminal or a socket, for another program (pty(7), unix(7))."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import tty
from collections.abc import Callable
from contextlib import ExitStack, suppress
from io import FileIO

from casemate.errors import HostError
from casemate.machine.console import Console

_POLL_SECONDS = 0.05
_READ_SIZE = 1024


class SerialLine:
    """Takes what the guest prints, and hands over what comes back; without a reader, output is lost as on a wire."""

    def __init__(self, console: Callable[[], Console]) -> None:
        self._console = console
        self._port: FileIO | None = None
        self._listener: socket.socket | None = None

    def open_pty(self, stack: ExitStack) -> None:
        """Make a pseudo-terminal and say its name on standard error. Raises HostError."""
        try:
            fd, terminal = os.openpty()
            tty.setraw(terminal)
        except OSError as error:
            raise HostError("openpty", error.errno or 0, "", "use --serial unix:PATH") from error
        stack.callback(os.close, terminal)  # kept open: the line is there before and after its reader
        os.set_blocking(fd, False)
        self._port = stack.enter_context(FileIO(fd, "r+b"))
        print(f"casemate: serial port is {os.ttyname(terminal)}", file=sys.stderr)

    def listen(self, path: str, stack: ExitStack) -> None:
        """Wait on a socket at ``path`` for one program at a time. Raises HostError."""
        self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            self._listener.bind(path)
            self._listener.listen(1)
        except OSError as error:
            remedy = "remove the file, or choose a path of less than 108 bytes that can be written"
            raise HostError("bind", error.errno or 0, f"{path}: {error}", remedy) from error
        stack.callback(_remove, path)
        stack.callback(self._hang_up)

    def write(self, data: bytes) -> None:
        """What the guest printed; never waits. On the vCPU's thread."""
        port = self._port
        if port is not None:
            with suppress(OSError, ValueError):  # hung up, or full
                port.write(data)

    def wait(self, finished: threading.Event, seconds: float) -> None:
        """Pass input on for some time, or until the run is finished."""
        waiting = self._port or self._listener
        if waiting is None:
            finished.wait(seconds)
            return
        ready, _, _ = select.select([waiting], [], [], min(seconds, _POLL_SECONDS))
        if not ready or finished.is_set():
            return
        if self._port is not None:
            self._read(self._port)
        elif self._listener is not None:
            client, _ = self._listener.accept()
            client.setblocking(False)
            self._port = FileIO(client.detach(), "r+b")

    def _read(self, port: FileIO) -> None:
        try:
            data = port.read(_READ_SIZE)
        except OSError:
            data = b""
        if data:
            self._console().type(data)
        elif data is not None and self._listener is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            port.close()


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
