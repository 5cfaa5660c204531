"""The two reset ports of a PC: 0xCF9 and 0x92 (Intel 316972, ICH9 data sheet, 13.7)."""

from __future__ import annotations

from collections.abc import Callable

CF9_RST_CPU = 1 << 2
CF9_STORED = 0x0A
PORT92_INIT_NOW = 1 << 0
PORT92_ALT_A20 = 1 << 1


class ResetControl:
    """Port 0xCF9: a write with RST_CPU set resets the machine."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset_machine = reset
        self.reset()

    def reset(self) -> None:
        """Register 0."""
        self._value = 0

    def read_port(self, offset: int, size: int) -> int | None:
        """The kind of reset that was chosen."""
        return self._value if size == 1 else None

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """Choose, and perhaps reset."""
        if size != 1:
            return False
        self._value = value & CF9_STORED
        if value & CF9_RST_CPU:
            self._reset_machine()
        return True


class Port92:
    """System control port A: fast reset, and an A20 gate that masks nothing."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset_machine = reset
        self.reset()

    def reset(self) -> None:
        """A20 on, as behind a chipset reset that starts at 0xFFFFFFF0."""
        self._value = PORT92_ALT_A20

    def read_port(self, offset: int, size: int) -> int | None:
        """What was written last."""
        return self._value if size == 1 else None

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """Reset on a rising INIT_NOW."""
        if size != 1:
            return False
        rising = value & ~self._value
        self._value = value
        if rising & PORT92_INIT_NOW:
            self._reset_machine()
        return True
