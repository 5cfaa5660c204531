"""Boards as tables of addresses (docs/design/machine.md)."""

from __future__ import annotations

from casemate.machine.boards.bare import BARE
from casemate.machine.boards.board import Board
from casemate.machine.boards.pc import PC
from casemate.machine.boards.q35 import Q35

BOARDS: dict[str, Board] = {board.name: board for board in (Q35, PC, BARE)}
