"""The bare board: no chipset, for tiny guests; its ACPI block lies where firmware puts it on q35 (OvmfPkg)."""

from __future__ import annotations

from casemate.machine.boards.board import Board


def _low_memory(memory: int) -> int:
    return min(memory, 0xB0000000)


BOARD = Board("bare", _low_memory, None, pm_base=0x600)
