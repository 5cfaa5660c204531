"""Clock and CMOS memory: time in every format, and the RAM sizes firmware computes from it."""

from __future__ import annotations

from calendar import timegm
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.devices.cmos import Cmos, Register
from casemate.testing.manual_clock import ManualClock

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SECOND = 1_000_000_000
FORMATS = [0x00, 0x02, 0x04, 0x06]
START = datetime(2024, 2, 29, 23, 59, 58)


class Rtc:
    """A CMOS with a driver's view of it."""

    def __init__(self, start: datetime = START, below: int = 128 * MIB, above: int = 0) -> None:
        self.clock = ManualClock(5 * SECOND)
        self.cmos = Cmos(self.clock, below, above, wall_clock=lambda: timegm(start.timetuple()))

    def read(self, register: int) -> int:
        assert self.cmos.write_port(0, 1, register)
        value = self.cmos.read_port(1, 1)
        assert value is not None
        return value

    def write(self, register: int, value: int) -> None:
        assert self.cmos.write_port(0, 1, register)
        assert self.cmos.write_port(1, 1, value)

    def number(self, register: int, size: int) -> int:
        return sum(self.read(register + index) << 8 * index for index in range(size))


def encoded(value: int, register_b: int) -> int:
    return value if register_b & 0x04 else int(str(value), 16)


def encoded_hour(hour: int, register_b: int) -> int:
    if register_b & 0x02:
        return encoded(hour, register_b)
    return encoded(hour % 12 or 12, register_b) | (0x80 if hour >= 12 else 0)


def fields(moment: datetime, register_b: int) -> dict[int, int]:
    return {
        Register.SECONDS: encoded(moment.second, register_b),
        Register.MINUTES: encoded(moment.minute, register_b),
        Register.HOURS: encoded_hour(moment.hour, register_b),
        Register.DAY: encoded(moment.day, register_b),
        Register.MONTH: encoded(moment.month, register_b),
        Register.YEAR: encoded(moment.year % 100, register_b),
        Register.CENTURY: encoded(moment.year // 100, register_b),
    }


@pytest.mark.parametrize("register_b", FORMATS)
@pytest.mark.parametrize("hour", [0, 1, 11, 12, 13, 23])
def test_clock_shows_time_in_every_format(register_b: int, hour: int) -> None:
    moment = START.replace(hour=hour)
    rtc = Rtc(moment)
    rtc.write(Register.B, register_b)
    expected = fields(moment, register_b)
    assert {register: rtc.read(register) for register in expected} == expected
    assert rtc.read(Register.DAY_OF_WEEK) == 5  # a Thursday; Sunday is 1


def test_clock_follows_guest_time_across_a_leap_day() -> None:
    rtc = Rtc()
    rtc.clock.skip(2 * SECOND)
    expected = fields(datetime(2024, 3, 1), 0x02)
    assert {register: rtc.read(register) for register in expected} == expected


@given(
    moment=st.datetimes(datetime(1980, 1, 1), datetime(2099, 12, 31, 23, 59, 59)).map(
        lambda moment: moment.replace(microsecond=0)
    ),
    register_b=st.sampled_from(FORMATS),
    stop=st.booleans(),
)
def test_clock_set_in_any_format_reads_back_and_runs_on(
    moment: datetime, register_b: int, stop: bool
) -> None:
    rtc = Rtc(datetime(2001, 1, 1))
    rtc.write(Register.B, register_b | (0x80 if stop else 0))
    # Without SET the clock runs while it is set; a driver then writes the largest unit first.
    for register, value in reversed(fields(moment, register_b).items()):
        rtc.write(register, value)
    rtc.clock.skip(0 if not stop else 10 * SECOND)
    rtc.write(Register.B, register_b)
    expected = fields(moment, register_b)
    assert {register: rtc.read(register) for register in expected} == expected
    rtc.clock.skip(SECOND)
    later = datetime.fromtimestamp(timegm(moment.timetuple()) + 1, UTC)
    assert rtc.read(Register.SECONDS) == encoded(later.second, register_b)


@given(
    writes=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=60),
    later=st.integers(0, 1 << 62),
)
def test_clock_survives_any_writes(writes: list[tuple[int, int]], later: int) -> None:
    rtc = Rtc()
    for register, value in writes:
        rtc.write(register, value)
    rtc.clock.skip(later % (400 * 86_400 * SECOND))
    assert all(0 <= rtc.read(register) <= 0xFF for register in range(128))


def test_clock_stands_still_while_set() -> None:
    rtc = Rtc()
    rtc.write(Register.B, 0x82)
    rtc.clock.skip(100 * SECOND)
    assert rtc.read(Register.SECONDS) == 0x58


def test_status_registers_are_what_drivers_expect() -> None:
    rtc = Rtc()
    assert rtc.read(Register.A) == 0x26
    rtc.write(Register.A, 0xFF)
    assert rtc.read(Register.A) == 0x7F
    rtc.write(Register.D, 0x00)
    assert rtc.read(Register.D) == 0x80
    assert rtc.read(Register.B) == 0x02


def test_flags_tell_update_once_and_request_only_if_enabled() -> None:
    rtc = Rtc(START.replace(hour=3))
    rtc.write(Register.A, 0x20)
    assert rtc.read(Register.C) == 0
    rtc.clock.skip(SECOND)
    assert rtc.read(Register.C) == 0x10
    assert rtc.read(Register.C) == 0
    rtc.write(Register.B, 0x12)
    rtc.clock.skip(SECOND)
    assert rtc.read(Register.C) == 0x90


@pytest.mark.parametrize(("rate", "period_us"), [(1, 3906), (2, 7812), (3, 122), (6, 976), (15, 500_000)])
def test_periodic_flag_follows_the_rate(rate: int, period_us: int) -> None:
    rtc = Rtc()
    rtc.write(Register.A, 0x20 | rate)
    rtc.read(Register.C)
    hits = 0
    for _ in range(10):
        rtc.clock.skip(period_us * 500)
        hits += rtc.read(Register.C) >> 6 & 1
    assert hits in (4, 5)


@pytest.mark.parametrize(
    ("second", "minute", "hour", "after", "expected"),
    [
        (0x01, 0x00, 0x00, 2, False),
        (0x01, 0x00, 0x00, 3, True),
        (0xFF, 0xFF, 0xFF, 1, True),
        (0x30, 0xFF, 0xC0, 31, False),
        (0x30, 0xFF, 0xC0, 32, True),
        (0x30, 0x59, 0x22, 86_400, True),
        (0x30, 0x59, 0x30, 86_400, False),
    ],
)
def test_alarm_flag_matches_time_and_wildcards(
    second: int, minute: int, hour: int, after: int, expected: bool
) -> None:
    rtc = Rtc()
    for register, value in ((1, second), (3, minute), (5, hour)):
        rtc.write(register, value)
    rtc.read(Register.C)
    rtc.clock.skip(after * SECOND)
    assert bool(rtc.read(Register.C) & 0x20) is expected


def test_registers_lie_where_firmware_expects_them() -> None:
    clock = [
        Register.SECONDS,
        Register.MINUTES,
        Register.HOURS,
        Register.DAY_OF_WEEK,
        Register.DAY,
        Register.MONTH,
    ]
    assert clock == [0, 2, 4, 6, 7, 8]
    assert [Register.YEAR, Register.CENTURY] == [9, 0x32]
    assert [Register.A, Register.B, Register.C, Register.D] == [10, 11, 12, 13]
    memory = [Register.BASE_MEMORY, Register.EXTENDED_MEMORY, Register.EXTENDED_MEMORY_2]
    assert memory == [0x15, 0x17, 0x30]
    assert [Register.MEMORY_ABOVE_16M, Register.MEMORY_ABOVE_4G] == [0x34, 0x5B]


def test_index_ignores_the_nmi_mask_and_cannot_be_read() -> None:
    rtc = Rtc()
    rtc.write(0x40, 0x77)
    assert rtc.read(0x40 | 0x80) == 0x77
    assert rtc.cmos.read_port(0, 1) == 0xFF
    assert rtc.cmos.read_port(1, 2) is None
    assert not rtc.cmos.write_port(0, 2, 0)


@pytest.mark.parametrize(
    ("below", "above"),
    [(128 * MIB, 0), (256 * MIB, 0), (GIB, 0), (2 * GIB, 0), (3 * GIB, GIB), (2 * GIB, 6 * GIB)],
)
def test_memory_sizes_add_up_as_firmware_adds_them(below: int, above: int) -> None:
    rtc = Rtc(below=below, above=above)
    assert rtc.number(Register.MEMORY_ABOVE_16M, 2) * 64 * KIB + 16 * MIB == below
    assert rtc.number(Register.MEMORY_ABOVE_4G, 3) * 64 * KIB == above
    assert rtc.number(Register.BASE_MEMORY, 2) == 640
    extended = min((below - MIB) // KIB, 0xFFFF)
    assert rtc.number(Register.EXTENDED_MEMORY, 2) == extended
    assert rtc.number(Register.EXTENDED_MEMORY_2, 2) == extended


def test_memory_sizes_of_a_small_machine_do_not_wrap() -> None:
    rtc = Rtc(below=4 * MIB)
    assert rtc.number(Register.MEMORY_ABOVE_16M, 2) == 0
    assert rtc.number(Register.EXTENDED_MEMORY, 2) == 3 * KIB


def test_memory_below_4g_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="1 MiB to 4 GiB"):
        Rtc(below=5 * GIB)


def test_reset_keeps_time_and_memory_and_disables_interrupts() -> None:
    rtc = Rtc()
    rtc.write(0x40, 0x11)
    rtc.write(Register.B, 0x72)
    rtc.cmos.reset()
    assert rtc.read(Register.B) == 0x02
    assert rtc.read(0x40) == 0x11
    assert rtc.read(Register.SECONDS) == 0x58
