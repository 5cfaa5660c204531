"""The q35 board: MCH host bridge with ECAM, ICH9 LPC (QEMU hw/i386/pc_q35.c for the memory split)."""

from __future__ import annotations

from casemate.devices.pci.config import PciFunction
from casemate.devices.pci.q35 import Ich9Lpc, Q35HostBridge
from casemate.machine.boards.board import Board, ChipsetEvents

_GIB = 1 << 30


def _low_memory(memory: int) -> int:
    return 2 * _GIB if memory >= 0xB0000000 else memory


def _pci(events: ChipsetEvents) -> dict[tuple[int, int], PciFunction]:
    return {(0, 0): Q35HostBridge(events.ecam), (31, 0): Ich9Lpc(events.pm_base)}


BOARD = Board("q35", _low_memory, _pci, pm_base=None)
