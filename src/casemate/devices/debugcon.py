"""The debug console: bytes that firmware writes to one port (QEMU hw/char/debugcon.c, edk2 PlatformDebugLibIoPort)."""

from __future__ import annotations

from collections.abc import Callable

PORT = 0x402
"""Where OVMF looks for it."""

_SIGNATURE = 0xE9


class DebugCon:
    """One port: reads say that somebody listens, writes go to ``output``."""

    def __init__(self, output: Callable[[int], None]) -> None:
        self._output = output

    def read_port(self, offset: int, size: int) -> int | None:
        """The signature that firmware probes for."""
        return _SIGNATURE

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """Hand the low byte on."""
        self._output(value & 0xFF)
        return True
