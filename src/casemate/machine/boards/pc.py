"""The pc board: i440FX host bridge, PIIX3 and PIIX4 (QEMU hw/i386/pc_piix.c for the memory split)."""

from __future__ import annotations

from casemate.devices.pci.config import PciFunction
from casemate.devices.pci.i440fx import I440fxHostBridge, Piix3Isa, Piix4Pm
from casemate.machine.boards.board import Board, ChipsetEvents


def _low_memory(memory: int) -> int:
    return 0xC0000000 if memory >= 0xE0000000 else memory


def _pci(events: ChipsetEvents) -> dict[tuple[int, int], PciFunction]:
    return {(0, 0): I440fxHostBridge(), (1, 0): Piix3Isa(), (1, 3): Piix4Pm(events.pm_base)}


BOARD = Board("pc", _low_memory, _pci, pm_base=None)
