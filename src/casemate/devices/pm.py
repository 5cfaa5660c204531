"""The ACPI fixed registers: PM1a event and control, and the timer (ACPI 6.5, 4.8.3; Intel 316972, 13.8.3)."""

from __future__ import annotations

from collections.abc import Callable

from casemate.devices.pm_timer import PmTimer

PM_BLOCK_SIZE = 128
PM1_EVT, PM1_EN, PM1_CNT, PM_TMR = 0x00, 0x02, 0x04, 0x08

CNT_SCI_EN = 1 << 0
CNT_SLP_TYP = 7 << 10
CNT_SLP_EN = 1 << 13
CNT_STORED = CNT_SCI_EN | 1 << 1 | CNT_SLP_TYP
SOFT_OFF = 0
"""SLP_TYP of S5, on q35 and i440fx alike."""


class PmBlock:
    """The block that PMBASE (ICH9) or PMBA (PIIX4) places in I/O space; what it does not have reads as zero.

    No fixed event ever happens, so PM1_STS stays 0. ``power_off`` is called when the guest enters soft off.
    """

    def __init__(self, timer: PmTimer, power_off: Callable[[], None]) -> None:
        self._timer = timer
        self._power_off = power_off
        self.reset()

    def reset(self) -> None:
        """No event enabled, ACPI mode off."""
        self._enable = self._control = 0
        self._timer.reset()

    def read_port(self, offset: int, size: int) -> int:
        """Any width at any offset."""
        if offset == PM_TMR and size == 4:
            return self._timer.read()
        if offset >= PM_TMR:
            timer = self._timer.read() if offset < PM_TMR + 4 else 0
            return timer >> 8 * (offset - PM_TMR) & (1 << 8 * size) - 1
        registers = self._enable << 8 * PM1_EN | self._control << 8 * PM1_CNT
        return registers >> 8 * offset & (1 << 8 * size) - 1

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """PM1_EN and PM1_CNT keep what is written; False behind them."""
        if offset >= PM_TMR:
            return False
        shift, mask = 8 * offset, (1 << 8 * size) - 1
        registers = self._enable << 8 * PM1_EN | self._control << 8 * PM1_CNT
        registers = registers & ~(mask << shift) | (value & mask) << shift
        self._enable = registers >> 8 * PM1_EN & 0xFFFF
        self._control = registers >> 8 * PM1_CNT & CNT_STORED
        sleep = registers >> 8 * PM1_CNT & (CNT_SLP_EN | CNT_SLP_TYP)
        if sleep == CNT_SLP_EN | SOFT_OFF << 10:
            self._power_off()
        return True
