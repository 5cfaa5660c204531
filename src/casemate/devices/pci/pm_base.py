"""A register that places the ACPI block in I/O space, with its enable bit (Intel 316972, 13.1; Intel 290562)."""

from __future__ import annotations

from collections.abc import Callable

from casemate.devices.pci.config import PciFunction

OnPmBase = Callable[[int | None], None]
"""Called with the first port of the ACPI block, or None when it is off."""


class PmBase:
    """Watches a 16-bit base register of ``function`` and the byte that enables it; ``moved`` hears of changes."""

    __slots__ = (
        "_address_mask",
        "_enable_bit",
        "_enable_register",
        "_function",
        "_moved",
        "_register",
        "base",
    )

    def __init__(
        self,
        function: PciFunction,
        register: int,
        address_mask: int,
        enable_register: int,
        enable_bit: int,
        moved: OnPmBase,
    ) -> None:
        self._function, self._moved = function, moved
        self._register, self._address_mask = register, address_mask
        self._enable_register, self._enable_bit = enable_register, enable_bit
        self.base: int | None = None

    def update(self) -> None:
        """Read both registers again."""
        base = self._function.read_config(self._register, 2) & self._address_mask
        enabled = self._function.read_config(self._enable_register, 1) & self._enable_bit
        wanted = base if base and enabled else None
        if wanted != self.base:
            self.base = wanted
            self._moved(wanted)
