"""One 8254 counter: counts and outputs against tick-by-tick counting, gates, BCD."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.devices.pit_channel import FREQUENCY_HZ, PitChannel
from casemate.testing.manual_clock import ManualClock

SECOND = 1_000_000_000


def at_tick(tick: int) -> int:
    """A guest time inside input clock ``tick``."""
    return (2 * tick + 1) * SECOND // (2 * FREQUENCY_HZ)


@dataclass
class Counter:
    """The data sheet's counting element, one input clock at a time; gate high from the start."""

    mode: int
    initial: int
    value: int = field(init=False)
    out: bool = field(init=False)

    def __post_init__(self) -> None:
        self.value = self.initial & ~1 if self.mode == 3 else self.initial
        self.out = self.mode not in (0, 1)
        self._expired = False

    def clock(self) -> None:
        if self.mode == 3:
            self._clock_square()
            return
        self.value -= 1
        if self.mode == 2:
            if self.value == 0:
                self.value = self.initial
            self.out = self.value != 1
            return
        if self.mode in (0, 1):
            self.out = self.out or self.value == 0
        else:
            self.out = self._expired or self.value != 0
            self._expired = self._expired or self.value == 0
        self.value &= 0xFFFF

    def _clock_square(self) -> None:
        """Odd counts: high lasts one clock longer, as the count of 0 is waited out only while high."""
        last = 0 if self.initial & 1 and self.out else 2
        if self.value == last:
            self.value = self.initial & ~1
            self.out = not self.out
        else:
            self.value -= 2


def programmed(mode: int, count: int) -> tuple[ManualClock, PitChannel]:
    clock = ManualClock()
    channel = PitChannel(clock)
    if mode in (1, 5):
        channel.set_gate(False)
    channel.set_mode(3, mode, bcd=False)
    channel.write(count & 0xFF)
    channel.write(count >> 8 & 0xFF)
    channel.set_gate(True)
    return clock, channel


@pytest.mark.parametrize("mode", [0, 1, 2, 3, 4, 5])
@given(count=st.integers(2, 40), ticks=st.integers(1, 200))
def test_channel_counts_as_the_data_sheet_does(mode: int, count: int, ticks: int) -> None:
    clock, channel = programmed(mode, count)
    expected = Counter(mode, count)
    for _ in range(ticks):
        expected.clock()
    clock.time = at_tick(ticks)
    assert (channel.value(), channel.output()) == (expected.value, expected.out)


@pytest.mark.parametrize(("mode", "out"), [(0, False), (1, True), (2, True), (3, True), (4, True), (5, True)])
def test_channel_output_before_a_count_is_written(mode: int, out: bool) -> None:
    channel = PitChannel(ManualClock())
    channel.set_mode(3, mode, bcd=False)
    assert channel.output() is out


@given(ticks=st.integers(0, 300_000))
def test_channel_zero_counts_65536_or_10000_in_bcd(ticks: int) -> None:
    clock = ManualClock()
    binary, decimal = PitChannel(clock), PitChannel(clock)
    for channel, bcd in ((binary, False), (decimal, True)):
        channel.set_mode(3, 2, bcd=bcd)
        channel.write(0)
        channel.write(0)
    clock.time = at_tick(ticks)
    assert binary.value() == -ticks % 0x10000
    assert decimal.value() == int(str(-ticks % 10_000), 16)


def test_channel_gate_stops_and_resumes_mode_0() -> None:
    clock, channel = programmed(0, 1000)
    clock.time = at_tick(400)
    channel.set_gate(False)
    clock.time = at_tick(5000)
    assert channel.value() == 600
    assert not channel.output()
    channel.set_gate(True)
    clock.skip(599 * SECOND // FREQUENCY_HZ)
    assert not channel.output()
    clock.skip(3 * SECOND // FREQUENCY_HZ)
    assert channel.output()


@pytest.mark.parametrize("mode", [2, 3])
def test_channel_gate_restarts_periodic_modes(mode: int) -> None:
    clock, channel = programmed(mode, 1000)
    clock.time = at_tick(777)
    channel.set_gate(False)
    assert channel.output()
    channel.set_gate(True)
    assert channel.value() == 1000


def test_channel_takes_a_bcd_count() -> None:
    clock = ManualClock()
    channel = PitChannel(clock)
    channel.set_mode(3, 2, bcd=True)
    channel.write(0x78)
    channel.write(0x56)
    assert channel.value() == 0x5678
    clock.time = at_tick(1_680)
    assert channel.value() == 0x3998
