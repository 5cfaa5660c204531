"""The 8254 interval timer and port 0x61 that gates its third channel (Intel 8254 data sheet, 231164)."""

from __future__ import annotations

from casemate.devices.device import IrqLine
from casemate.host.clock import GuestClock

FREQUENCY_HZ = 1_193_182
SECOND_NS = 1_000_000_000
NEVER = 1 << 62
REFRESH_NS = 15_085
"""Half a period of the memory refresh that port 0x61 bit 4 shows."""

TRIGGERED_MODES = (1, 5)
PERIODIC_MODES = (2, 3)
READ_BACK = 3


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

    def write(self, value: int) -> None:
        """A byte of the count; the last one starts counting."""
        if self._access == 3 and self._low is None:
            self._low = value
            return
        raw = value << 8 | (self._low or 0) if self._access != 1 else value
        self._low = None
        modulus = 10_000 if self._bcd else 0x10000
        self._count = (_from_bcd(raw) if self._bcd else raw) or modulus
        self._elapsed = 0
        self._start = self._clock.now() if self.gate and self.mode not in TRIGGERED_MODES else None

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
            edge *= self._ticks(after) // edge + 1
        elif self._ticks(after) >= edge:
            return NEVER
        return self._start + _ticks_to_ns(edge)

    def _ticks(self, now: int) -> int:
        if self._start is None:
            return self._elapsed
        return (now - self._start) * FREQUENCY_HZ // SECOND_NS

    def _bytes(self) -> list[int]:
        value = self.value()
        both = [value & 0xFF, value >> 8]
        return both if self._access == 3 else [both[self._access - 1]]


class Pit:
    """Ports 0x40 to 0x43. The rising edges of channel 0 go to ``irq``; call ``advance`` when they are due."""

    def __init__(self, clock: GuestClock) -> None:
        self._clock = clock
        self.irq: IrqLine = lambda level: None
        self.channels = tuple(PitChannel(clock) for _ in range(3))
        self.reset()

    def reset(self) -> None:
        """No channel programmed; the gate of channel 2 closed."""
        for channel in self.channels:
            channel.reset()
        self.channels[2].set_gate(False)
        self.next_edge = NEVER
        """Guest time of channel 0's next interrupt, or NEVER."""

    def deadline(self) -> int | None:
        """``next_edge``, or None if channel 0 has none."""
        return None if self.next_edge == NEVER else self.next_edge

    def advance(self, now: int) -> None:
        """Raise the interrupt if its time has come; edges that were missed count as one."""
        if now >= self.next_edge:
            self.irq(False)
            self.irq(True)
            self.next_edge = self.channels[0].next_rise(now)

    def read_port(self, offset: int, size: int) -> int | None:
        """A counter; the control word cannot be read."""
        return self.channels[offset].read() if size == 1 and offset < 3 else None

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """A byte of a count, or a control word."""
        if size != 1:
            return False
        if offset < 3:
            self.channels[offset].write(value)
        else:
            self._write_control(value)
        if offset in (0, 3):
            self.next_edge = self.channels[0].next_rise(self._clock.now())
        return True

    def _write_control(self, value: int) -> None:
        select, access, mode = value >> 6, value >> 4 & 3, value >> 1 & 7
        if select == READ_BACK:
            for number, channel in enumerate(self.channels):
                if value >> 1 + number & 1:
                    if not value & 0x20:
                        channel.latch()
                    if not value & 0x10:
                        channel.latch_status()
        elif access == 0:
            self.channels[select].latch()
        else:
            self.channels[select].set_mode(access, mode if mode < 6 else mode - 4, bool(value & 1))


class Port61:
    """Port 0x61: gate and output of channel 2, the speaker that is not there, and the refresh toggle."""

    def __init__(self, clock: GuestClock, pit: Pit) -> None:
        self._clock = clock
        self._channel = pit.channels[2]
        self.reset()

    def reset(self) -> None:
        """Gate closed, speaker off."""
        self._value = 0
        self._channel.set_gate(False)

    def read_port(self, offset: int, size: int) -> int | None:
        """Bits 0 and 1 as written, 4 refresh, 5 OUT of channel 2."""
        if size != 1:
            return None
        refresh = self._clock.now() // REFRESH_NS & 1
        return self._value | refresh << 4 | self._channel.output() << 5

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """Bit 0 gates channel 2."""
        if size != 1:
            return False
        self._value = value & 0x03
        self._channel.set_gate(bool(value & 1))
        return True


def _ticks_to_ns(ticks: int) -> int:
    """The first nanosecond at which so many ticks have passed."""
    return -(-ticks * SECOND_NS // FREQUENCY_HZ)


def _from_bcd(value: int) -> int:
    return sum((value >> 4 * digit & 0x0F) * 10**digit for digit in range(4))


def _to_bcd(value: int) -> int:
    return int(f"{value:04d}", 16)
