"""The debug exit port: a guest that writes to it ends its run (QEMU hw/misc/debugexit.c)."""

from __future__ import annotations

from collections.abc import Callable

PORT, PORTS = 0xF4, 4
"""Where test guests look for it; without a test device the first port alone is there."""


def status_of(value: int) -> int:
    """How a process ends for which the guest wrote ``value``: odd, so that 0 is never the guest's."""
    return (value << 1 | 1) & 0xFF


class ExitPort:
    """Remembers the first value that the guest wrote, and calls ``stop``."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self.value: int | None = None
        """What the guest wrote, or None if it did not."""
        self._stop = stop

    def read_port(self, offset: int, size: int) -> int | None:
        """Zero: there is nothing to read."""
        return 0

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """End the run."""
        if self.value is None:
            self.value = value
        self._stop()
        return True
