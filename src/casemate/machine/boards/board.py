"""A board: which devices it has and where (docs/design/machine.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from casemate.address import Gpa
from casemate.devices.pci.config import PciFunction

LAPIC = Gpa(0xFEE00000)
IOAPIC = Gpa(0xFEC00000)
SERIAL_PORT = 0x3F8
SERIAL_IRQ = 4

VGA_HOLE = (0xA0000, 0xC0000)
"""Start and end of what is no RAM on any PC."""


@dataclass(frozen=True, slots=True)
class ChipsetEvents:
    """What a chipset tells the machine when firmware programs it."""

    pm_base: Callable[[int | None], None]
    """The ACPI block moved; None is off."""
    ecam: Callable[[int | None, int], None]
    """The ECAM window moved; None is off."""


@dataclass(frozen=True, slots=True)
class Board:
    """An address table. ``pci`` makes the functions, by device and function number; None is a board without PCI."""

    name: str
    low_memory: Callable[[int], int]
    """Bytes of RAM below 4 GiB, of all there is."""
    pci: Callable[[ChipsetEvents], dict[tuple[int, int], PciFunction]] | None
    pm_base: int | None
    """First port of the ACPI block before firmware programs it."""
