"""A register that places the ACPI block in I/O space, with its enable bit (Intel 316972, 13.1; Intel 290562)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from casemate.devices.pci.config import PciFunction

OnPmBase = Callable[[int | None], None]
"""Called with the first port of the ACPI block, or None when it is off."""


@dataclass(slots=True)
class PmBase:
    """Watches a 16-bit base register of ``function`` and the byte that enables it; ``moved`` hears of changes."""

    function: PciFunction
    register: int
    address_mask: int
    enable_register: int
    enable_bit: int
    moved: OnPmBase
    base: int | None = None

    def update(self) -> None:
        """Read both registers again."""
        base = self.function.read_config(self.register, 2) & self.address_mask
        enabled = self.function.read_config(self.enable_register, 1) & self.enable_bit
        wanted = base if base and enabled else None
        if wanted != self.base:
            self.base = wanted
            self.moved(wanted)
