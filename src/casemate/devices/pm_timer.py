"""The ACPI power-management timer, and how waiting on it costs no host time (ACPI 6.5, 4.8.3.3)."""

from __future__ import annotations

from casemate.host.clock import NANOSECONDS, GuestClock

FREQUENCY_HZ = 3_579_545
COUNTER_MASK = (1 << 24) - 1

STALL_GAP_NS = 20_000
"""Two reads closer than this are one loop that waits."""
PROTECTED_STALL_GAP_NS = 1_000_000
"""The same where each read goes through the guest's #VC handler."""
FIRST_STEP_NS, LAST_STEP_NS = 1_000, 4_000_000


class PmTimer:
    """A 24-bit counter of guest time.

    Firmware waits by reading this counter in a loop: two million times in a boot. With ``skip_stalls`` each
    read that follows the last one closely moves guest time forward, by a step that doubles from 1 us to 4 ms;
    a guest that does anything else in between sees plain time. ``stall_gap`` is how close that is, in nanoseconds.
    Steps stay far below half the counter's period of 4.7 s.
    """

    __slots__ = ("_clock", "_last_read", "_skip_stalls", "_stall_gap", "_step")

    def __init__(self, clock: GuestClock, skip_stalls: bool = True, stall_gap: int = STALL_GAP_NS) -> None:
        self._clock = clock
        self._skip_stalls = skip_stalls
        self._stall_gap = stall_gap
        self.reset()

    def reset(self) -> None:
        """Forget the streak of reads; the counter itself is guest time and goes on."""
        self._last_read = -self._stall_gap
        self._step = FIRST_STEP_NS

    def read(self) -> int:
        """The counter."""
        now = self._clock.now()
        if self._skip_stalls:
            if now - self._last_read < self._stall_gap:
                step = self._step
                self._clock.skip(step)
                now += step
                if step < LAST_STEP_NS:
                    self._step = min(2 * step, LAST_STEP_NS)
            else:
                self._step = FIRST_STEP_NS
            self._last_read = now
        return now * FREQUENCY_HZ // NANOSECONDS & COUNTER_MASK
