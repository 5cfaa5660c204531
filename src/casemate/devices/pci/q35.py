"""The q35 functions that firmware needs: MCH host bridge and ICH9 LPC bridge (Intel 316966, 316972)."""

from __future__ import annotations

from collections.abc import Callable

from casemate.devices.pci.config import PciFunction
from casemate.devices.pci.pm_base import OnPmBase, PmBase

OnEcam = Callable[[int | None, int], None]
"""Called with the new base of the ECAM window, or None when it is off, and its size in bytes."""


class HostRegister:
    """Registers of the host bridge."""

    PCIEXBAR = 0x60
    PAM0 = 0x90
    SMRAM = 0x9D


class LpcRegister:
    """Registers of the LPC bridge."""

    PMBASE = 0x40
    ACPI_CNTL = 0x44
    PIRQ_A = 0x60
    PIRQ_E = 0x68
    RCBA = 0xF0


PCIEXBAR_ENABLE = 1 << 0
PCIEXBAR_ADDRESS = 0xF_FC00_0000
PCIEXBAR_WRITABLE = PCIEXBAR_ADDRESS | 0x07
PMBASE_ADDRESS = 0xFF80
ACPI_ENABLE = 1 << 7
PIRQ_DISABLED = 0x80


class Q35HostBridge(PciFunction):
    """8086:29C0 at 0.0; ``on_ecam`` hears of every change of PCIEXBAR. PAM and SMRAM are only kept."""

    def __init__(self, on_ecam: OnEcam) -> None:
        super().__init__(0x8086, 0x29C0, class_code=0x060000)
        self.define(HostRegister.PCIEXBAR, 8, 0, PCIEXBAR_WRITABLE)
        self.define(HostRegister.PAM0, 7, 0, 0x33_33_33_33_33_33_30)
        self.define(HostRegister.SMRAM, 2, 0x02, 0x7B)
        self._on_ecam = on_ecam
        self._ecam = self._decode()

    def config_written(self, register: int, size: int) -> None:
        """Tell where the ECAM window is if that changed."""
        ecam = self._decode()
        if ecam != self._ecam:
            self._ecam = ecam
            self._on_ecam(*ecam)

    def _decode(self) -> tuple[int | None, int]:
        value = self.read_config(HostRegister.PCIEXBAR, 8)
        size = (256, 128, 64, 0)[value >> 1 & 3] << 20
        if not size or not value & PCIEXBAR_ENABLE:
            return None, size
        return value & PCIEXBAR_ADDRESS & -size, size


class Ich9Lpc(PciFunction):
    """8086:2918 at 1f.0; ``on_pm_base`` hears where the ACPI block goes. PIRQ and RCBA are only kept."""

    def __init__(self, on_pm_base: OnPmBase) -> None:
        super().__init__(0x8086, 0x2918, class_code=0x060100, revision=2, multi_function=True)
        self.define(LpcRegister.PMBASE, 4, 0x01, PMBASE_ADDRESS)
        self.define(LpcRegister.ACPI_CNTL, 1, 0, ACPI_ENABLE | 0x07)
        for first in (LpcRegister.PIRQ_A, LpcRegister.PIRQ_E):
            self.define(first, 4, PIRQ_DISABLED * 0x01010101, 0x8F8F8F8F)
        self.define(LpcRegister.RCBA, 4, 0, 0xFFFF_C001)
        self._pm_base = PmBase(
            self, LpcRegister.PMBASE, PMBASE_ADDRESS, LpcRegister.ACPI_CNTL, ACPI_ENABLE, on_pm_base
        )

    def config_written(self, register: int, size: int) -> None:
        """Tell where the ACPI block is if that changed."""
        self._pm_base.update()
