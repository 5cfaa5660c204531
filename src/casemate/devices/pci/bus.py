"""PCI bus 0 by configuration mechanism #1 and by ECAM (PCI 3.0, 3.2.2.3.2; PCI Express Base 3.0, 7.2.2)."""

from __future__ import annotations

from casemate.devices.pci.config import PciFunction

ADDRESS_PORT, DATA_PORT = 0, 4
ADDRESS_ENABLE = 1 << 31
ADDRESS_WRITABLE = 0x80FF_FFFC
ECAM_BYTES_PER_BUS = 1 << 20


class PciHost:
    """Ports 0xCF8 to 0xCFF (0xCF9 alone is the reset register's), and the ECAM window as MMIO.

    Only bus 0 exists. Where no function is, reads give all ones and writes vanish: so a guest scans.
    """

    def __init__(self) -> None:
        self._functions: dict[int, PciFunction] = {}
        self._address = 0

    def add(self, device: int, function: int, pci_function: PciFunction) -> None:
        """Put a function at ``device`` (0 to 31), ``function`` (0 to 7)."""
        self._functions[device << 3 | function] = pci_function

    def reset(self) -> None:
        """Every function to its power-on values."""
        self._address = 0
        for function in self._functions.values():
            function.reset()

    def read_port(self, offset: int, size: int) -> int | None:
        """The address register, or the configuration bytes that it selects."""
        if offset < DATA_PORT:
            return self._address if offset == ADDRESS_PORT and size == 4 else None
        function = self._selected()
        if function is None:
            return (1 << 8 * size) - 1
        return function.read_config(self._address & 0xFC | offset & 3, size)

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """The address register (32 bits only), or the configuration bytes that it selects."""
        if offset < DATA_PORT:
            if offset == ADDRESS_PORT and size == 4:
                self._address = value & ADDRESS_WRITABLE
                return True
            return False
        function = self._selected()
        if function is not None:
            function.write_config(self._address & 0xFC | offset & 3, size, value)
        return True

    def read_mmio(self, offset: int, size: int) -> int:
        """ECAM: bus, device and function from the offset; extended space of a function reads 0."""
        function = self._at(offset)
        if function is None:
            return (1 << 8 * size) - 1
        return function.read_config(offset & 0xFFF, size)

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        """ECAM store."""
        function = self._at(offset)
        if function is not None:
            function.write_config(offset & 0xFFF, size, value)
        return True

    def _selected(self) -> PciFunction | None:
        if not self._address & ADDRESS_ENABLE or self._address >> 16 & 0xFF:
            return None
        return self._functions.get(self._address >> 8 & 0xFF)

    def _at(self, offset: int) -> PciFunction | None:
        return self._functions.get(offset >> 12) if offset < ECAM_BYTES_PER_BUS else None
