"""The timer of the local APIC (Intel SDM volume 3A, "APIC Timer")."""

from __future__ import annotations

NEVER = 1 << 62
"""A guest time in nanoseconds that does not come."""


class LapicTimer:
    """One-shot or periodic count-down at 1 GHz over the divider; all times are guest nanoseconds.

    Nothing ticks: the caller compares ``next_expiry`` with the time and calls ``expire`` when it has come.
    """

    __slots__ = ("_divide_configuration", "_divider", "initial_count", "next_expiry", "periodic")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Stopped, one-shot, divided by 2."""
        self.initial_count = 0
        self.periodic = False
        self._divide_configuration = 0
        self._divider = 2
        self.next_expiry = NEVER

    @property
    def divide_configuration(self) -> int:
        """The DCR register."""
        return self._divide_configuration

    def start(self, count: int, now: int) -> None:
        """Write the initial count: 0 stops."""
        self.initial_count = count
        self.next_expiry = now + count * self._divider if count else NEVER

    def start_once(self, time: int) -> None:
        """Expire once, at guest time ``time``."""
        self.initial_count = 0
        self.next_expiry = time

    def set_divide_configuration(self, value: int, now: int) -> None:
        """Write DCR; the count goes on from where it is."""
        remaining = self.current_count(now)
        self._divide_configuration = value & 0x0B
        code = value & 3 | value >> 1 & 4
        self._divider = 1 if code == 7 else 2 << code
        if remaining:
            self.next_expiry = now + remaining * self._divider

    def current_count(self, now: int) -> int:
        """What is left; 0 in one-shot mode after expiry."""
        if self.next_expiry == NEVER:
            return 0
        return max(0, -(-(self.next_expiry - now) // self._divider))

    def expire(self, now: int) -> None:
        """Take note that ``next_expiry`` has come; periods that were missed count as this one."""
        if not self.periodic or not self.initial_count:
            self.next_expiry = NEVER
            return
        period = self.initial_count * self._divider
        self.next_expiry += ((now - self.next_expiry) // period + 1) * period

    def deadline(self) -> int | None:
        """``next_expiry``, or None while stopped."""
        return None if self.next_expiry == NEVER else self.next_expiry
