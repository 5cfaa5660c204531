"""PM timer: true to guest time, and a stall loop that costs few reads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from casemate.devices.pm_timer import COUNTER_MASK, FREQUENCY_HZ, LAST_STEP_NS, PmTimer
from casemate.testing.manual_clock import ManualClock

SECOND = 1_000_000_000
READ_NS = 1_500
"""Guest time that one turn of a stall loop takes."""


def stall(timer: PmTimer, clock: ManualClock, nanoseconds: int) -> int:
    """Wait as firmware does, by summing counter differences; returns the number of reads."""
    wanted = nanoseconds * FREQUENCY_HZ // SECOND
    last, passed, reads = timer.read(), 0, 1
    while passed < wanted:
        clock.skip(READ_NS)
        now = timer.read()
        passed += (now - last) & COUNTER_MASK
        last, reads = now, reads + 1
    return reads


def test_timer_counts_guest_time_at_its_frequency() -> None:
    clock = ManualClock()
    timer = PmTimer(clock)
    assert timer.read() == 0
    clock.skip(SECOND)
    assert timer.read() == FREQUENCY_HZ
    clock.skip(4 * SECOND)
    assert timer.read() == 5 * FREQUENCY_HZ & COUNTER_MASK


def test_timer_read_alone_skips_nothing() -> None:
    clock = ManualClock()
    timer = PmTimer(clock)
    for _ in range(100):
        clock.skip(20_000)
        before = clock.now()
        timer.read()
        assert clock.now() == before


def test_timer_first_read_after_power_on_skips_nothing() -> None:
    clock = ManualClock(5)
    PmTimer(clock).read()
    assert clock.now() == 5


def test_timer_stall_of_a_second_takes_few_reads_and_is_not_overshot() -> None:
    clock = ManualClock()
    reads = stall(PmTimer(clock), clock, SECOND)
    assert reads < 400
    assert SECOND <= clock.now() < SECOND + LAST_STEP_NS + 2 * READ_NS


def test_timer_short_stalls_stay_short() -> None:
    clock = ManualClock()
    timer = PmTimer(clock)
    for microseconds in (1, 10, 50):
        clock.skip(1_000_000)
        before = clock.now()
        stall(timer, clock, microseconds * 1_000)
        assert clock.now() - before < 3_000 * microseconds + 5_000


def test_timer_gap_ends_the_streak() -> None:
    clock = ManualClock()
    timer = PmTimer(clock)
    for _ in range(30):
        timer.read()
    clock.skip(25_000)
    timer.read()
    before = clock.now()
    timer.read()
    assert clock.now() - before == 1_000


def test_timer_without_stall_skipping_never_moves_the_clock() -> None:
    clock = ManualClock()
    timer = PmTimer(clock, skip_stalls=False)
    stall(timer, clock, 10_000_000)
    assert clock.now() < 10_000_000 + 2 * READ_NS


@given(gaps=st.lists(st.integers(0, 100_000), min_size=1, max_size=300))
def test_timer_is_monotonic_and_jumps_less_than_half_its_period(gaps: list[int]) -> None:
    clock = ManualClock()
    timer = PmTimer(clock)
    last = timer.read()
    for gap in gaps:
        clock.skip(gap)
        now = timer.read()
        assert (now - last) & COUNTER_MASK < (COUNTER_MASK + 1) // 2
        last = now
