"""One counter of the 8254 interval timer (Intel 8254 data sheet, 231164)."""

from __future__ import annotations

from casemate.host.clock import NANOSECONDS, GuestClock

FREQUENCY_HZ = 1_193_182
NEVER = 1 << 62
"""A guest time in nanoseconds that does not come."""

TRIGGERED_MODES = (1, 5)
PERIODIC_MODES = (2, 3)


class PitChannel:
    """One counter; what it shows is computed from guest time, nothing ticks."""

    def __init__(self, clock: GuestClock) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Not programmed: counts nothing, OUT high, gate open."""
        self.gate = True
        self.set_mode(3, 3, bcd=False)

    def set_mode(self, access: int, mode: int, bcd: bool) -> None:
        """A control word: ``access`` is 1 low byte, 2 high byte, 3 both; counting waits for a count."""
        self._access = access
        self.mode = mode
        self._bcd = bcd
        self._low: int | None = None
        self._latched: list[int] = []
        self._status: int | None = None
        self._high_next = False
        self._count = 0
        self._start: int | None = None
        self._elapsed = 0

    def write(self, value: int) -> bool:
        """A byte of the count; whether it is the last one, which starts counting."""
        if self._access == 3 and self._low is None:
            self._low = value
            return False
        raw = value << 8 | (self._low or 0) if self._access != 1 else value
        self._low = None
        modulus = 10_000 if self._bcd else 0x10000
        self._count = (_from_bcd(raw) if self._bcd else raw) or modulus
        self._elapsed = 0
        self._start = self._clock.now() if self.gate and self.mode not in TRIGGERED_MODES else None
        return True

    def set_gate(self, gate: bool) -> None:
        """Drive the gate: low stops modes 0, 2, 3, 4; a rising edge triggers 1, 5 and restarts 2, 3."""
        if gate == self.gate:
            return
        self.gate = gate
        if not self._count:
            return
        if gate and self.mode not in (0, 4):
            self._start = self._clock.now()
        elif gate:
            self._start = self._clock.now() - _ticks_to_ns(self._elapsed)
        elif self.mode not in TRIGGERED_MODES:
            self._elapsed = self._ticks(self._clock.now())
            self._start = None

    def output(self) -> bool:
        """The OUT pin."""
        if not self._count:
            return self.mode != 0
        ticks = self._ticks(self._clock.now())
        match self.mode:
            case 0:
                return ticks >= self._count
            case 1:
                return self._start is None or ticks >= self._count
            case 2:
                return not self.gate or ticks % self._count != self._count - 1
            case 3:
                return not self.gate or ticks % self._count < (self._count + 1) // 2
        return ticks != self._count

    def value(self) -> int:
        """The counting element as the guest reads it."""
        count, ticks = self._count, self._ticks(self._clock.now())
        modulus = 10_000 if self._bcd else 0x10000
        if self.mode == 2 and count:
            number = count - ticks % count
        elif self.mode == 3 and count:
            half = (count + 1) // 2
            number = (count & ~1) - 2 * (ticks % count % half)
        else:
            number = count - ticks
        number %= modulus
        return _to_bcd(number) if self._bcd else number

    def latch(self) -> None:
        """Hold the count for the next read; a held count stays."""
        if not self._latched:
            self._latched = self._bytes()

    def latch_status(self) -> None:
        """Hold the status byte for the next read."""
        if self._status is None:
            null_count = not self._count
            self._status = (
                self.output() << 7 | null_count << 6 | self._access << 4 | self.mode << 1 | int(self._bcd)
            )

    def read(self) -> int:
        """Status if it is held, else the held or the running count, byte by byte."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        if self._latched:
            return self._latched.pop(0)
        current = self._bytes()
        if self._access != 3:
            return current[0]
        self._high_next = not self._high_next
        return current[0 if self._high_next else 1]

    def next_rise(self, after: int) -> int:
        """Guest time of the first rising edge of OUT later than ``after``, or NEVER."""
        if self._start is None or not self._count:
            return NEVER
        edge = self._count if self.mode != 4 else self._count + 1
        if self.mode in PERIODIC_MODES:
            edge *= max(self._ticks(after), 0) // edge + 1
        elif self._ticks(after) >= edge:
            return NEVER
        return self._start + _ticks_to_ns(edge)

    def count_rises(self, first: int, last: int) -> int:
        """How many rising edges come from that at ``first`` to guest time ``last``."""
        if self.mode not in PERIODIC_MODES or not self._count:
            return 1
        return 1 + (last - first) * FREQUENCY_HZ // NANOSECONDS // self._count

    def _ticks(self, now: int) -> int:
        if self._start is None:
            return self._elapsed
        return (now - self._start) * FREQUENCY_HZ // NANOSECONDS

    def _bytes(self) -> list[int]:
        value = self.value()
        both = [value & 0xFF, value >> 8]
        return both if self._access == 3 else [both[self._access - 1]]


def _ticks_to_ns(ticks: int) -> int:
    """The first nanosecond at which so many ticks have passed."""
    return -(-ticks * NANOSECONDS // FREQUENCY_HZ)


def _from_bcd(value: int) -> int:
    return sum((value >> 4 * digit & 0x0F) * 10**digit for digit in range(4))


def _to_bcd(value: int) -> int:
    return int(f"{value:04d}", 16)
