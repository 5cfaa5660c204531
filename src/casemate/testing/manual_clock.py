"""A guest clock that moves only when a test says so (docs/decisions/0004-guest-clock.md)."""

from __future__ import annotations

from casemate.host.clock import GuestClock


class ManualClock(GuestClock):
    """Guest time in nanoseconds, set by the test: assign ``time`` or call ``skip``."""

    __slots__ = ("time",)

    def __init__(self, time: int = 0) -> None:
        super().__init__()
        self.time = time

    def now(self) -> int:
        """The time that was set."""
        return self.time

    def skip(self, nanoseconds: int) -> None:
        """Move forward by ``nanoseconds``."""
        self.time += nanoseconds
