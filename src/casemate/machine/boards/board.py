"""A board: which devices it has and where (docs/design/machine.md)."""

from collections.abc import Callable
from typing import NamedTuple

from casemate.address import FOUR_GIB, Gpa
from casemate.devices.pci.config import PciFunction

SERIAL_PORT = 0x3F8
SERIAL_IRQ = 4
KEYBOARD_IRQ = 1

VGA_HOLE = (0xA0000, 0xC0000)
"""Start and end of what is no RAM on any PC."""


class ChipsetEvents:
    """What a chipset tells the machine when firmware programs it: ACPI block or ECAM window moved; None is off."""

    def __init__(
        self, pm_base: Callable[[int | None], None], ecam: Callable[[int | None, int], None]
    ) -> None:
        self.pm_base, self.ecam = pm_base, ecam


class RamPiece(NamedTuple):
    """``size`` bytes of RAM at ``gpa``, out of one block from ``offset`` on."""

    name: str
    gpa: Gpa
    offset: int
    size: int


class Board:
    """An address table. ``low_memory`` says how many bytes of all RAM lie below 4 GiB.

    ``pci`` makes the functions, by device and function number; None is a board without PCI. ``pm_base`` is the first
    port of the ACPI block before firmware programs it.
    """

    def __init__(
        self,
        name: str,
        low_memory: Callable[[int], int],
        pci: Callable[[ChipsetEvents], dict[tuple[int, int], PciFunction]] | None,
        pm_base: int | None,
    ) -> None:
        self.name, self.low_memory, self.pci, self.pm_base = name, low_memory, pci, pm_base

    def ram(self, memory: int) -> list[RamPiece]:
        """Where ``memory`` bytes of RAM lie, around the holes of a PC."""
        low = self.low_memory(memory)
        hole_start, hole_end = VGA_HOLE
        pieces = [
            RamPiece("ram below 640 KiB", Gpa(0), 0, hole_start),
            RamPiece("ram above 768 KiB", Gpa(hole_end), hole_end, low - hole_end),
        ]
        if memory > low:
            pieces.append(RamPiece("ram above 4 GiB", Gpa(FOUR_GIB), low, memory - low))
        return pieces
