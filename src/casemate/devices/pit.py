"""The 8254 interval timer and port 0x61 that gates its third channel (Intel 8254 data sheet, 231164)."""

from __future__ import annotations

from collections.abc import Callable

from casemate.devices.device import IrqLine
from casemate.devices.pit_channel import NEVER, PitChannel
from casemate.host.clock import GuestClock

REFRESH_NS = 15_085
"""Half a period of the memory refresh that port 0x61 bit 4 shows."""

READ_BACK = 3

MOST_OWED = 1000
"""Ticks that a guest can be behind: of those that it did not get because nobody ran it for long, the rest is lost."""


class Pit:
    """Ports 0x40 to 0x43. The rising edges of channel 0 go to ``irq``; call ``advance`` when they are due.

    A guest that cannot take a tick before the next one is due, because its host runs something else, gets all of them
    one after the other, as KVM does it (KVM_REINJECT_CONTROL): kernels count them against other clocks.
    """

    def __init__(self, clock: GuestClock) -> None:
        self._clock = clock
        self.irq: IrqLine = lambda level: None
        self.on_timer: Callable[[int], None] = lambda time: None
        """Told the next edge when channel 0 is programmed."""
        self.waits: Callable[[], bool] = lambda: False
        """Whether the guest has yet to take the last edge."""
        self.is_heard: Callable[[], bool] = lambda: True
        """Whether the interrupt is unmasked; otherwise no tick is owed."""
        self.reinjects = True
        self.channels = tuple(PitChannel(clock) for _ in range(3))
        self.reset()

    def reset(self) -> None:
        """No channel programmed; the gate of channel 2 closed."""
        for channel in self.channels:
            channel.reset()
        self.channels[2].set_gate(False)
        self.next_edge = NEVER
        """Guest time of channel 0's next interrupt, or NEVER."""
        self.owed = 0
        """Ticks that were due and are still to come."""

    def deadline(self) -> int | None:
        """Guest time of the next edge, 0 if an owed one can be given, or None if channel 0 has none."""
        if self.owed and not self.waits():
            return 0
        return None if self.next_edge == NEVER else self.next_edge

    def advance(self, now: int) -> None:
        """Raise the interrupt if its time has come, or if one is owed and the guest has taken the last."""
        is_due = now >= self.next_edge
        if is_due:
            self.owed = min(self.owed + self.channels[0].count_rises(self.next_edge, now), MOST_OWED)
            self.next_edge = self.channels[0].next_rise(now)
        if not self.owed:
            return
        if not self.reinjects or not self.is_heard():
            self.owed = 1 if is_due else 0
        if self.owed and not self.waits():
            self.owed -= 1
            self.irq(False)
            self.irq(True)

    def read_port(self, offset: int, size: int) -> int | None:
        """A counter; the control word cannot be read."""
        return self.channels[offset].read() if size == 1 and offset < 3 else None

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """A byte of a count, or a control word."""
        if size != 1:
            return False
        now = self._clock.now()  # before the count starts: its first edge may be over when the write is
        is_programmed = self.channels[offset].write(value) if offset < 3 else self._write_control(value)
        if is_programmed and offset in (0, 3):
            self.owed = 0
            self.next_edge = self.channels[0].next_rise(now)
            self.on_timer(self.next_edge)
        return True

    def _write_control(self, value: int) -> bool:
        """Whether it is for the way in which channel 0 counts."""
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
            return select == 0
        return False


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
