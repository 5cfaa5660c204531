"""The guest's clock: host time plus what the guest would only have waited for (docs/decisions/0004-guest-clock.md)."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns

NANOSECONDS = 1_000_000_000


class GuestClock:
    """Guest time in nanoseconds since power-on; never runs backwards, and may be moved forward.

    ``idle_allowance`` nanoseconds of idle time are skipped, then idling takes as long as it says; ``grant_idle``
    renews the allowance. So a countdown costs nothing, and a guest that waits for good does not spin. ``on_skip`` hears
    of every move forward, in nanoseconds: another clock of the guest that must not stay behind.
    """

    __slots__ = ("_allowance", "_left", "_offset", "on_skip")

    def __init__(self, idle_allowance: int = 0) -> None:
        self._offset = -monotonic_ns()
        self._allowance = idle_allowance
        self._left = idle_allowance
        self.on_skip: Callable[[int], None] | None = None

    def now(self) -> int:
        """Guest time in nanoseconds."""
        return monotonic_ns() + self._offset

    def host_time(self, time: int) -> int:
        """When that guest time is, by ``time.monotonic_ns``, if none is skipped before."""
        return time - self._offset

    def skip(self, nanoseconds: int) -> None:
        """Move guest time forward by ``nanoseconds``."""
        self._offset += nanoseconds
        if self.on_skip is not None:
            self.on_skip(nanoseconds)

    @property
    def skips_waits(self) -> bool:
        """Whether it moves forward where a guest only waits."""
        return self._allowance > 0

    def grant_idle(self) -> None:
        """The guest did something: idle time may be skipped again."""
        self._left = self._allowance

    def idle_until(self, deadline: int) -> int:
        """Skip idle time up to guest time ``deadline``; returns the nanoseconds that must really be waited."""
        wait = deadline - self.now()
        if wait <= 0:
            return 0
        if wait > self._left:
            return wait
        self._left -= wait
        self.skip(wait)
        return 0
