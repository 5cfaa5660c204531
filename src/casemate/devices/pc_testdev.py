"""What kernel test suites drive: a latch, interrupt lines that can be pulled, memory (QEMU hw/misc/pc-testdev.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from casemate.address import Gpa

if TYPE_CHECKING:
    from casemate.devices.device import IrqLine

LATCH_PORT, FLUSH_PORT, BYTES_PORT, IRQ_PORT = 0xE0, 0xE4, 0xE8, 0x2000
"""Four ports each, but as many as there are lines."""
IRQ_LINES = 16
MEMORY, MEMORY_SIZE = Gpa(0xFF000000), 0x10000


class Latch:
    """32 bits that are read as they were written; whole or by bytes, at either of two places."""

    def __init__(self) -> None:
        self._bytes = bytearray(4)

    def reset(self) -> None:
        """All zeros."""
        self._bytes[:] = bytes(4)

    def read_port(self, offset: int, size: int) -> int | None:
        """As many bytes as there are."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """As many bytes as there are."""
        for at, byte in enumerate(value.to_bytes(size, "little")[: 4 - offset]):
            self._bytes[offset + at] = byte
        return True


class PageFlush:
    """Takes the address of a page that the host is to map anew, which changes nothing that a guest can see."""

    def read_port(self, offset: int, size: int) -> int | None:
        """Nothing is there."""
        return None

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """Nothing happens."""
        return True


class IrqPorts:
    """One port for each line: it follows what is written."""

    def __init__(self, irq: Callable[[int], IrqLine]) -> None:
        self._lines = [irq(number) for number in range(IRQ_LINES)]

    def reset(self) -> None:
        """All lines are low."""
        for line in self._lines:
            line(False)

    def read_port(self, offset: int, size: int) -> int | None:
        """Nothing is there."""
        return None

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """Raise the line, or lower it by 0."""
        self._lines[offset](bool(value))
        return True


class TestMemory:
    """Memory that is a device's, so that each access leaves the guest."""

    def __init__(self) -> None:
        self._bytes = bytearray(MEMORY_SIZE)

    def reset(self) -> None:
        """All zeros."""
        self._bytes[:] = bytes(MEMORY_SIZE)

    def read_mmio(self, offset: int, size: int) -> int | None:
        """What was written."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        """Keep it."""
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")
        return True
