"""The real-time clock and the CMOS memory that tells RAM sizes (Motorola MC146818A; QEMU hw/i386/pc.c)."""

from __future__ import annotations

import time
from collections.abc import Callable

from casemate.address import FOUR_GIB
from casemate.host.clock import NANOSECONDS, GuestClock

CMOS_SIZE = 128
EPOCH_YEAR = 1970
_EPOCH_WEEKDAY = 4
"""A Thursday, counted from Sunday."""
_CYCLE_YEARS, _CYCLE_DAYS = 400, 146_097
"""The calendar repeats; the clock has years that the C library may not have."""
_DAYS_BEFORE_MONTH = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
KIB, MIB = 1 << 10, 1 << 20


class Register:
    """Clock registers, and the bytes of CMOS memory that this machine fills."""

    SECONDS = 0x00
    SECONDS_ALARM = 0x01
    MINUTES = 0x02
    MINUTES_ALARM = 0x03
    HOURS = 0x04
    HOURS_ALARM = 0x05
    DAY_OF_WEEK = 0x06
    DAY = 0x07
    MONTH = 0x08
    YEAR = 0x09
    A = 0x0A
    B = 0x0B
    C = 0x0C
    D = 0x0D
    EQUIPMENT = 0x14
    BASE_MEMORY = 0x15
    EXTENDED_MEMORY = 0x17
    EXTENDED_MEMORY_2 = 0x30
    CENTURY = 0x32
    MEMORY_ABOVE_16M = 0x34
    MEMORY_ABOVE_4G = 0x5B


TIME_REGISTERS = frozenset({0, 2, 4, 6, 7, 8, 9, Register.CENTURY})
A_RESET = 0x26
B_SET, B_BINARY, B_24_HOURS = 0x80, 0x04, 0x02
B_INTERRUPT_ENABLES = 0x70
C_IRQF, C_PERIODIC, C_ALARM, C_UPDATE = 0x80, 0x40, 0x20, 0x10
D_VALID = 0x80
HOUR_PM = 0x80
ALARM_ANY = 0xC0
"""An alarm byte with both top bits set matches every value."""
DAY_SECONDS = 86_400


class Cmos:
    """Index port (offset 0) and data port (offset 1).

    The clock starts at ``wall_clock()`` (seconds since 1970, UTC) and runs on guest time. ``ram_below_4g``
    and ``ram_above_4g`` are bytes. Register C tells the events since it was last read; IRQ8 is not raised.
    """

    def __init__(
        self,
        clock: GuestClock,
        ram_below_4g: int,
        ram_above_4g: int = 0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._offset = int(wall_clock() * 1e9) - clock.now()
        self._bytes = bytearray(CMOS_SIZE)
        self._bytes[Register.A] = A_RESET
        self._bytes[Register.B] = B_24_HOURS
        self._store_memory_sizes(ram_below_4g, ram_above_4g)
        self.reset()

    def reset(self) -> None:
        """The battery keeps time and memory; a reset only disables interrupts and drops their flags."""
        self._index = 0
        self._flags_since = self._now()
        self._bytes[Register.B] &= ~B_INTERRUPT_ENABLES

    def read_port(self, offset: int, size: int) -> int | None:
        """The selected byte; the index port itself cannot be read back."""
        if size != 1:
            return None
        return self._read(self._index) if offset else 0xFF

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """Select a byte (bit 7, the NMI mask, is ignored) or store to the selected one."""
        if size != 1:
            return False
        if offset:
            self._write(self._index, value)
        else:
            self._index = value & 0x7F
        return True

    def _store_memory_sizes(self, below: int, above: int) -> None:
        def store(register: int, value: int, size: int = 2) -> None:
            self._bytes[register : register + size] = value.to_bytes(size, "little")

        if not MIB <= below <= FOUR_GIB:
            raise ValueError(f"RAM below 4 GiB must be 1 MiB to 4 GiB, not {below:#x}")
        extended = min((below - MIB) // KIB, 0xFFFF)
        store(Register.BASE_MEMORY, 640)
        store(Register.EXTENDED_MEMORY, extended)
        store(Register.EXTENDED_MEMORY_2, extended)
        store(Register.MEMORY_ABOVE_16M, min(max(below - 16 * MIB, 0) // (64 * KIB), 0xFFFF))
        store(Register.MEMORY_ABOVE_4G, min(above // (64 * KIB), 0xFFFFFF), 3)
        self._bytes[Register.EQUIPMENT] = 0x02  # a floating-point unit, and nothing else to declare

    def _now(self) -> int:
        return self._clock.now() + self._offset

    def _read(self, register: int) -> int:
        if register in TIME_REGISTERS and not self._bytes[Register.B] & B_SET:
            self._store_time()
        elif register == Register.C:
            return self._take_flags()
        elif register == Register.D:
            return D_VALID
        return self._bytes[register]

    def _write(self, register: int, value: int) -> None:
        stopped = self._bytes[Register.B] & B_SET
        if register in TIME_REGISTERS:
            if not stopped:
                self._store_time()
            self._bytes[register] = value
            if not stopped:
                self._load_time()
        elif register == Register.A:
            self._bytes[register] = value & 0x7F
        elif register == Register.B:
            if value & B_SET and not stopped:
                self._store_time()
            self._bytes[register] = value
            if stopped and not value & B_SET:
                self._load_time()
        elif register not in (Register.C, Register.D):
            self._bytes[register] = value

    def _store_time(self) -> None:
        """Guest time into the time registers."""

        days, seconds = divmod(self._now() // NANOSECONDS, DAY_SECONDS)
        year, month, day = _date_of(days)
        self._bytes[Register.SECONDS] = self._encode(seconds % 60)
        self._bytes[Register.MINUTES] = self._encode(seconds // 60 % 60)
        self._bytes[Register.HOURS] = self._encode_hour(seconds // 3600)
        self._bytes[Register.DAY_OF_WEEK] = self._encode((days + _EPOCH_WEEKDAY) % 7 + 1)
        self._bytes[Register.DAY] = self._encode(day)
        self._bytes[Register.MONTH] = self._encode(month)
        self._bytes[Register.YEAR] = self._encode(year % 100)
        self._bytes[Register.CENTURY] = self._encode(year // 100 % 100)

    def _load_time(self) -> None:
        """The time registers into guest time; nonsense in them carries over into the next larger unit."""

        field = [self._decode(value) for value in self._bytes]
        year = field[Register.CENTURY] * 100 + field[Register.YEAR]
        days = _days_to(year, min(max(field[Register.MONTH], 1), 12)) + field[Register.DAY] - 1
        hours = 24 * days + self._decode_hour(self._bytes[Register.HOURS])
        seconds = (60 * hours + field[Register.MINUTES]) * 60 + field[Register.SECONDS]
        self._offset = seconds * NANOSECONDS - self._clock.now()
        self._flags_since = self._now()

    def _encode(self, value: int) -> int:
        return value if self._bytes[Register.B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._bytes[Register.B] & B_BINARY else (value >> 4) * 10 + (value & 0x0F)

    def _encode_hour(self, hour: int) -> int:
        if self._bytes[Register.B] & B_24_HOURS:
            return self._encode(hour)
        return self._encode((hour - 1) % 12 + 1) | (HOUR_PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._bytes[Register.B] & B_24_HOURS:
            return self._decode(value)
        return self._decode(value & ~HOUR_PM) % 12 + (12 if value & HOUR_PM else 0)

    def _take_flags(self) -> int:
        since, now = self._flags_since, self._now()
        self._flags_since = now
        flags = 0
        if self._bytes[Register.B] & B_SET == 0 and now // NANOSECONDS != since // NANOSECONDS:
            flags |= C_UPDATE
            if self._alarm_passed(since // NANOSECONDS, now // NANOSECONDS):
                flags |= C_ALARM
        period = self._period_ns()
        if period and now // period != since // period:
            flags |= C_PERIODIC
        return flags | (C_IRQF if flags & self._bytes[Register.B] else 0)

    def _period_ns(self) -> int:
        rate = self._bytes[Register.A] & 0x0F
        if rate in (1, 2):
            rate += 7
        return (NANOSECONDS << rate - 1) // 32_768 if rate else 0

    def _alarm_passed(self, since: int, now: int) -> bool:
        """Whether a second in ``(since, now]`` matches the alarm; times are in seconds."""
        second, minute, hour = (self._bytes[r] for r in (1, 3, 5))
        first = max(since, now - DAY_SECONDS) + 1
        return any(
            (second >= ALARM_ANY or self._decode(second) == moment % 60)
            and (minute >= ALARM_ANY or self._decode(minute) == moment // 60 % 60)
            and (hour >= ALARM_ANY or self._decode_hour(hour) == moment // 3600 % 24)
            for moment in range(first, now + 1)
        )


def _date_of(days: int) -> tuple[int, int, int]:
    """Year, month and day of the ``days``-th day since 1970, of any year."""
    cycles, rest = divmod(days, _CYCLE_DAYS)
    found = time.gmtime(rest * DAY_SECONDS)
    return found.tm_year + _CYCLE_YEARS * cycles, found.tm_mon, found.tm_mday


def _days_to(year: int, month: int) -> int:
    """Days from 1970 to the first of a month, of any year."""
    is_leap_year = year % 4 == 0 and (year % 100 != 0 or year % _CYCLE_YEARS == 0)
    days = _days_before(year) - _days_before(EPOCH_YEAR) + _DAYS_BEFORE_MONTH[month - 1]
    return days + (is_leap_year and month > 2)


def _days_before(year: int) -> int:
    past = year - 1
    return 365 * past + past // 4 - past // 100 + past // _CYCLE_YEARS
