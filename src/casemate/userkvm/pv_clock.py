"""KVM's paravirtual clock: a VM's nanoseconds, and the page by which its guest reads them (Linux x86/msr.rst).

The clock follows the time-stamp counter, so that the page of a vCPU is right until the counter or the clock is set.
"""

from __future__ import annotations

import struct
from time import time_ns

from casemate.host.clock import NANOSECONDS
from casemate.host.model.cpu.unicorn_api import host_ticks

SYSTEM_TIME_MSRS, WALL_CLOCK_MSRS = (0x12, 0x4B564D01), (0x11, 0x4B564D00)
"""Of KVM_FEATURE_CLOCKSOURCE and _CLOCKSOURCE2."""
TIME_BYTES = 32
_ENABLED, _STABLE = 1, 1
_TIME = struct.Struct("<IIQQIbBxx")
"""``pvclock_vcpu_time_info``: version, padding, counter, nanoseconds, multiplier, shift, flags."""
_WALL = struct.Struct("<III")
"""``pvclock_wall_clock``: version, seconds, nanoseconds."""
_64_BITS = (1 << 64) - 1


def scale_of(khz: int) -> tuple[int, int]:
    """Shift and multiplier: ``(ticks << shift) * multiplier >> 32`` are nanoseconds, of a counter of at least 1 kHz."""
    rate, shift = max(khz, 1) * 1000, 0
    while rate > 2 * NANOSECONDS:
        rate, shift = rate >> 1, shift - 1
    while rate <= NANOSECONDS:
        rate, shift = rate << 1, shift + 1
    return shift, (NANOSECONDS << 32) // rate


class VmClock:
    """One VM's, from 0 on. It is ``khz`` by which it counts."""

    def __init__(self, khz: int) -> None:
        self._shift, self._multiplier = scale_of(khz)
        self._base_ticks, self._base = host_ticks(), 0

    def at(self, ticks: int) -> int:
        """Nanoseconds when the host's counter was that."""
        delta = ticks - self._base_ticks
        delta = delta << self._shift if self._shift >= 0 else delta >> -self._shift
        return self._base + (delta * self._multiplier >> 32)

    def set(self, nanoseconds: int) -> None:
        """From now on."""
        self._base_ticks, self._base = host_ticks(), nanoseconds

    def time_page(self, version: int, tsc_offset: int) -> bytes:
        """What a vCPU reads whose counter is ``tsc_offset`` ahead of the host's."""
        counter = self._base_ticks + tsc_offset & _64_BITS
        return _TIME.pack(version, 0, counter, self._base & _64_BITS, self._multiplier, self._shift, _STABLE)

    def wall_clock(self) -> bytes:
        """When the clock was 0, of Unix time."""
        began = time_ns() - self.at(host_ticks())
        return _WALL.pack(2, began // NANOSECONDS, began % NANOSECONDS)


def page_of(value: int) -> int | None:
    """Where a guest wants its page, by the register that it wrote; None if nowhere."""
    return value & ~_ENABLED if value & _ENABLED else None
