"""The guest's clock: host time plus whatever the guest would only have waited for (docs/decisions/0004-guest-clock.md)."""

from __future__ import annotations

from time import monotonic_ns


class GuestClock:
    """Guest time in nanoseconds since power-on; never runs backwards, and may be moved forward."""

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = -monotonic_ns()

    def now(self) -> int:
        """Guest time in nanoseconds."""
        return monotonic_ns() + self._offset

    def skip(self, nanoseconds: int) -> None:
        """Move guest time forward by ``nanoseconds``."""
        self._offset += nanoseconds
