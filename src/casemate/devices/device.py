"""What a device offers to the bus: small protocols, every one optional (docs/design/devices.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

IrqLine = Callable[[bool], None]
"""An interrupt wire: called with the new level."""


class PortIo(Protocol):
    """A device's registers in I/O port space; offsets are relative to the first port that the board gave it."""

    def read_port(self, offset: int, size: int) -> int | None:
        """IN of ``size`` bytes (1, 2, 4); None if nothing is there: the guest reads all ones and it is counted."""

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """OUT of ``size`` bytes; False if nothing is there: it is counted."""


class Resettable(Protocol):
    """A device with state that a machine reset clears."""

    def reset(self) -> None:
        """Back to power-on state; memory and files keep their contents."""
