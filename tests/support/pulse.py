"""At a terminal, a tilde for each three seconds in which no test ended, so that tests are seen to go on (pytest)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

QUIET_SECONDS = 3


class Pulse:
    """A plugin that writes the tilde by ``write``."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._quiet = 0

    def tick(self) -> None:
        """A second has passed."""
        self._quiet += 1
        if self._quiet == QUIET_SECONDS:
            self._write("~")
            self._quiet = 0

    def pytest_runtest_logreport(self) -> None:
        """Something was printed for a test."""
        self._quiet = 0


def pytest_configure(config: pytest.Config) -> None:
    """In the process that prints, and only at a terminal: what else is written there may be captured."""
    if hasattr(config, "workerinput"):
        return
    try:
        terminal = open("/dev/tty", "w")  # noqa: SIM115
    except OSError:
        return

    def write(text: str) -> None:
        terminal.write(text)
        terminal.flush()

    pulse, ended = Pulse(write), threading.Event()

    def beat() -> None:
        while not ended.wait(1):
            pulse.tick()

    thread = threading.Thread(target=beat, name="pulse", daemon=True)
    config.pluginmanager.register(pulse)
    config.add_cleanup(terminal.close)
    config.add_cleanup(thread.join)
    config.add_cleanup(ended.set)  # the last one is called first
    thread.start()
