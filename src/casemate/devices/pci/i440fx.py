"""The i440FX host bridge, PIIX3 ISA bridge and PIIX4 power management (Intel 290549, 290550 and 290562)."""

from __future__ import annotations

from casemate.devices.pci.config import PciFunction, Register
from casemate.devices.pci.pm_base import OnPmBase, PmBase

PAM0, SMRAM = 0x59, 0x72
PIRQ_A = 0x60
PIRQ_DISABLED = 0x80


class PmRegister:
    """Registers of the PIIX4 power management function."""

    PMBA = 0x40
    PMREGMISC = 0x80


PMBA_ADDRESS = 0xFFC0
PMREGMISC_ENABLE = 1 << 0
SCI_IRQ = 9


class I440fxHostBridge(PciFunction):
    """8086:1237 at 0.0; PAM and SMRAM only keep their values."""

    def __init__(self) -> None:
        super().__init__(0x8086, 0x1237, class_code=0x060000, revision=2)
        self.define(PAM0, 7, 0, 0x33_33_33_33_33_33_30)
        self.define(SMRAM, 1, 0x02, 0x7B)


class Piix3Isa(PciFunction):
    """8086:7000 at 1.0; interrupt routes are only kept."""

    def __init__(self) -> None:
        super().__init__(0x8086, 0x7000, class_code=0x060100, multi_function=True)
        self.define(PIRQ_A, 4, PIRQ_DISABLED * 0x01010101, 0x8F8F8F8F)


class Piix4Pm(PciFunction):
    """8086:7113 at 1.3; ``on_pm_base`` hears where the ACPI block goes, or None."""

    def __init__(self, on_pm_base: OnPmBase) -> None:
        super().__init__(0x8086, 0x7113, class_code=0x068000, revision=3)
        self.define(Register.INTERRUPT_LINE, 1, SCI_IRQ, 0xFF)
        self.define(Register.INTERRUPT_PIN, 1, 1)
        self.define(PmRegister.PMBA, 4, 0x01, PMBA_ADDRESS)
        self.define(PmRegister.PMREGMISC, 1, 0, PMREGMISC_ENABLE)
        self._pm_base = PmBase(
            self, PmRegister.PMBA, PMBA_ADDRESS, PmRegister.PMREGMISC, PMREGMISC_ENABLE, on_pm_base
        )

    def config_written(self, register: int, size: int) -> None:
        """Tell where the ACPI block is if that changed."""
        self._pm_base.update()
