"""Boards as tables of addresses (docs/design/machine.md)."""

from __future__ import annotations

from casemate.machine.boards.bare import BARE
from casemate.machine.boards.board import Board
from casemate.machine.boards.pc import PC
from casemate.machine.boards.q35 import Q35
from casemate.machine.spec import BoardName


def find_board(name: BoardName) -> Board:
    """The board of this name."""
    match name:
        case "q35":
            return Q35
        case "pc":
            return PC
        case "bare":
            return BARE
