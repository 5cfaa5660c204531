"""8254 on its ports: access modes, latches, interrupts from channel 0, and port 0x61."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.devices.pit import MOST_OWED, Pit, Port61
from casemate.devices.pit_channel import FREQUENCY_HZ
from casemate.testing.manual_clock import ManualClock

SECOND = 1_000_000_000


def at_tick(tick: int) -> int:
    """A guest time inside input clock ``tick``."""
    return (2 * tick + 1) * SECOND // (2 * FREQUENCY_HZ)


class Timer:
    """A PIT on its ports, with the interrupts that came."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.pit = Pit(self.clock)
        self.edges = 0
        self.pit.irq = self.drive

    def drive(self, level: bool) -> None:
        self.edges += level

    def start(self, mode: int, count: int, channel: int = 0) -> None:
        self.write(3, channel << 6 | 0x30 | mode << 1)
        self.write(channel, count & 0xFF)
        self.write(channel, count >> 8 & 0xFF)

    def write(self, offset: int, value: int) -> None:
        assert self.pit.write_port(offset, 1, value)

    def read(self, offset: int) -> int:
        value = self.pit.read_port(offset, 1)
        assert value is not None
        return value

    def run_to(self, time: int) -> None:
        self.clock.time = time
        self.pit.advance(time)


def test_pit_access_modes_read_and_write_the_bytes_they_name() -> None:
    timer = Timer()
    timer.write(3, 0x14)
    timer.write(0, 0x80)
    assert timer.read(0) == timer.read(0) == 0x80
    timer.write(3, 0x24)
    timer.write(0, 0x12)
    assert timer.read(0) == 0x12
    timer.start(2, 0x1234)
    assert (timer.read(0), timer.read(0), timer.read(0)) == (0x34, 0x12, 0x34)


def test_pit_latch_holds_the_count_until_both_bytes_are_read() -> None:
    timer = Timer()
    timer.start(2, 0xABCD)
    timer.clock.time = at_tick(0x1111)
    timer.write(3, 0x00)
    timer.clock.time = at_tick(0x2222)
    timer.write(3, 0x00)
    assert timer.read(0) | timer.read(0) << 8 == 0xABCD - 0x1111
    assert timer.read(0) | timer.read(0) << 8 == 0xABCD - 0x2222


def test_pit_read_back_latches_status_before_count_in_the_chosen_channels() -> None:
    timer = Timer()
    timer.start(0, 0x4000, channel=1)
    timer.write(3, 0xC4)
    timer.clock.time = at_tick(0x100)
    assert timer.read(1) == 0x30
    assert timer.read(1) | timer.read(1) << 8 == 0x4000
    timer.clock.time = at_tick(0x5000)
    timer.write(3, 0xE4)
    assert timer.read(1) == 0xB0


def test_pit_status_tells_that_no_count_was_written() -> None:
    timer = Timer()
    timer.write(3, 0x36)
    timer.write(3, 0xE2)
    assert timer.read(0) == 0x80 | 0x40 | 0x36


@pytest.mark.parametrize("mode", [2, 3, 6, 7])
@given(count=st.integers(2, 0x10000), periods=st.integers(1, 50))
def test_pit_periodic_interrupts_come_once_a_period_and_do_not_drift(
    mode: int, count: int, periods: int
) -> None:
    timer = Timer()
    timer.start(mode, count & 0xFFFF)
    for period in range(1, periods + 1):
        deadline = timer.pit.deadline()
        assert deadline is not None
        assert abs(deadline - period * count * SECOND / FREQUENCY_HZ) <= 1
        timer.run_to(deadline - 1)
        assert timer.edges == period - 1
        timer.run_to(deadline)
        assert timer.edges == period


def test_ticks_that_nobody_could_take_come_one_after_the_other() -> None:
    timer = Timer()
    timer.start(2, 11_932)
    timer.pit.waits = lambda: timer.edges > 0
    timer.run_to(SECOND)
    timer.run_to(SECOND + 1)
    assert timer.edges == 1
    deadline = timer.pit.deadline()
    assert deadline is not None
    assert SECOND < deadline <= SECOND + 10_000_200
    timer.pit.waits = lambda: False
    assert timer.pit.deadline() == 0
    while timer.pit.deadline() == 0:
        timer.run_to(SECOND + 1)
    assert timer.edges == 99
    assert timer.pit.deadline() == deadline


def test_ticks_are_lost_where_the_interrupt_is_masked_or_the_monitor_says_so() -> None:
    for masked, reinjects in ((True, True), (False, False)):
        timer = Timer()
        timer.start(2, 11_932)
        timer.pit.is_heard = (lambda: False) if masked else (lambda: True)
        timer.pit.reinjects = reinjects
        timer.run_to(SECOND)
        timer.run_to(SECOND + 1)
        assert timer.edges == 1


def test_guest_is_owed_no_more_than_a_thousand_ticks_and_none_of_another_programming() -> None:
    timer = Timer()
    timer.start(2, 11_932)
    timer.run_to(3600 * SECOND)
    assert timer.pit.owed == MOST_OWED - 1
    timer.start(2, 11_932)
    assert timer.pit.deadline() != 0


@pytest.mark.parametrize(("mode", "ticks"), [(0, 1000), (4, 1001)])
def test_pit_one_shot_interrupts_once(mode: int, ticks: int) -> None:
    timer = Timer()
    timer.start(mode, 1000)
    deadline = timer.pit.deadline()
    assert deadline is not None
    assert abs(deadline - ticks * SECOND / FREQUENCY_HZ) <= 1
    timer.run_to(deadline)
    timer.run_to(100 * SECOND)
    assert timer.edges == 1
    assert timer.pit.deadline() is None
    timer.start(mode, 1000)
    assert timer.pit.deadline() is not None


@pytest.mark.parametrize("mode", [1, 5])
def test_pit_triggered_modes_never_start_on_channel_0(mode: int) -> None:
    timer = Timer()
    timer.start(mode, 1000)
    assert timer.pit.deadline() is None


def test_pit_control_word_stops_the_interrupt_until_a_count_is_written() -> None:
    timer = Timer()
    timer.start(2, 1000)
    timer.write(3, 0x34)
    assert timer.pit.deadline() is None
    timer.write(0, 0x10)
    assert timer.pit.deadline() is None
    timer.write(0, 0x10)
    assert timer.pit.deadline() is not None


def test_pit_refuses_wide_accesses_and_reads_of_the_control_word() -> None:
    timer = Timer()
    assert timer.pit.read_port(3, 1) is None
    assert timer.pit.read_port(0, 2) is None
    assert not timer.pit.write_port(0, 2, 0)


def test_pit_at_power_on_has_no_interrupt_and_a_closed_gate() -> None:
    pit = Pit(ManualClock())
    assert pit.deadline() is None
    assert [channel.gate for channel in pit.channels] == [True, True, False]


def test_port_61_refuses_wide_accesses() -> None:
    timer = Timer()
    port = Port61(timer.clock, timer.pit)
    assert port.read_port(0, 2) is None
    assert not port.write_port(0, 2, 1)
    assert not timer.pit.channels[2].gate


def test_port_61_gates_and_shows_channel_2() -> None:
    """The calibration loop of an operating system: mode 0, gate on, wait for OUT."""
    timer = Timer()
    port = Port61(timer.clock, timer.pit)
    assert port.write_port(0, 1, 0x00)
    timer.start(0, 11_932, channel=2)
    timer.clock.skip(SECOND)
    assert not (port.read_port(0, 1) or 0) & 0x20
    port.write_port(0, 1, 0x01)
    start = timer.clock.now()
    while not (port.read_port(0, 1) or 0) & 0x20:
        timer.clock.skip(10_000)
    assert 10_000_000 <= timer.clock.now() - start <= 10_020_000


def test_port_61_refresh_toggles_and_speaker_bits_read_back() -> None:
    clock = ManualClock()
    port = Port61(clock, Pit(clock))
    port.write_port(0, 1, 0xFF)
    seen = set()
    for _ in range(10):
        value = port.read_port(0, 1)
        assert value is not None
        assert value & 0x03 == 0x03
        seen.add(value >> 4 & 1)
        clock.skip(15_085)
    assert seen == {0, 1}


class BusyClock(ManualClock):
    """A clock of a machine that runs something else whenever it was read."""

    def now(self) -> int:
        self.time += SECOND
        return self.time


def test_pit_counts_that_are_over_before_their_write_ends_raise_their_interrupt() -> None:
    timer = Timer()
    timer.pit = Pit(BusyClock())
    timer.pit.irq = timer.drive
    timer.start(0, 2)
    timer.pit.advance(100 * SECOND)
    assert timer.edges == 1


@pytest.mark.parametrize("control", [0x00, 0x40, 0x70, 0xC2, 0xD0], ids=hex)
def test_pit_commands_that_program_nothing_lose_no_edge_that_is_due(control: int) -> None:
    timer = Timer()
    timer.start(0, 2)
    timer.clock.time = at_tick(5)
    timer.write(3, control)
    timer.pit.advance(timer.clock.now())
    assert timer.edges == 1
