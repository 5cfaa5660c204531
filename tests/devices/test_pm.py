"""ACPI block: PM1 registers at every width, the timer at +8, and soft off."""

from __future__ import annotations

import pytest

from casemate.devices.pm import PmBlock
from casemate.devices.pm_timer import FREQUENCY_HZ, PmTimer
from casemate.testing.manual_clock import ManualClock

SLP_EN = 1 << 13


class Block:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.power_offs = 0
        self.pm = PmBlock(PmTimer(self.clock), self.power_off)

    def power_off(self) -> None:
        self.power_offs += 1


def test_pm_block_starts_zero_and_keeps_enable_and_sci() -> None:
    block = Block()
    assert [block.pm.read_port(offset, 2) for offset in (0, 2, 4, 6)] == [0, 0, 0, 0]
    assert block.pm.write_port(2, 2, 0x0100)
    assert block.pm.write_port(4, 2, 0x0001)
    assert block.pm.read_port(0, 4) == 0x0100_0000
    assert block.pm.read_port(4, 2) == 1
    block.pm.reset()
    assert block.pm.read_port(0, 4) == block.pm.read_port(4, 4) == 0


def test_pm_block_status_stays_clear() -> None:
    block = Block()
    assert block.pm.write_port(0, 2, 0xFFFF)
    assert block.pm.read_port(0, 2) == 0


def test_pm_block_timer_is_at_8_in_any_width() -> None:
    block = Block()
    block.clock.skip(1_000_000_000)
    assert block.pm.read_port(8, 4) == FREQUENCY_HZ
    block.clock.skip(1_000_000_000)
    assert block.pm.read_port(9, 1) == 2 * FREQUENCY_HZ >> 8 & 0xFF
    assert not block.pm.write_port(8, 4, 0)


def test_pm_block_rest_reads_zero_and_ignores_writes() -> None:
    block = Block()
    assert block.pm.read_port(0x20, 4) == 0
    assert not block.pm.write_port(0x30, 4, 0xFFFF_FFFF)


@pytest.mark.parametrize(
    ("offset", "size", "value"), [(4, 2, SLP_EN), (4, 4, SLP_EN | 1), (5, 1, SLP_EN >> 8)]
)
def test_pm_block_sleep_enable_with_type_0_powers_off(offset: int, size: int, value: int) -> None:
    block = Block()
    block.pm.write_port(offset, size, value)
    assert block.power_offs == 1
    assert not block.pm.read_port(4, 2) & SLP_EN


@pytest.mark.parametrize("value", [SLP_EN | 1 << 10, SLP_EN | 5 << 10, 0x0001, 0x1C00])
def test_pm_block_other_sleep_types_do_not_power_off(value: int) -> None:
    block = Block()
    block.pm.write_port(4, 2, value)
    assert block.power_offs == 0


@pytest.mark.parametrize(("offset", "size"), [(8, 1), (9, 2), (10, 2), (11, 1), (10, 4)])
def test_pm_block_timer_bytes_are_those_of_the_counter(offset: int, size: int) -> None:
    block = Block()
    block.clock.skip(3_000_000_000)
    counter = (3 * FREQUENCY_HZ & 0xFF_FFFF).to_bytes(8, "little")
    expected = counter[offset - 8 : offset - 8 + size]
    assert block.pm.read_port(offset, size) == int.from_bytes(expected, "little")
    assert block.pm.read_port(12, 4) == 0


def test_pm_block_byte_writes_leave_the_neighbours_alone() -> None:
    block = Block()
    block.pm.write_port(2, 2, 0x1234)
    block.pm.write_port(4, 2, 0x0401)
    block.pm.write_port(3, 1, 0x56)
    block.pm.write_port(7, 1, 0xFF)
    assert block.pm.read_port(2, 2) == 0x5634
    assert block.pm.read_port(4, 4) == 0x0401
