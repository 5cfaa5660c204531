"""Boards as tables of addresses (docs/design/machine.md)."""

from __future__ import annotations

from casemate.records import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.machine.boards.board import Board
    from casemate.machine.spec import BoardName


def find_board(name: BoardName) -> Board:
    """The board of this name; the others are not loaded."""
    match name:
        case "q35":
            from casemate.machine.boards.q35 import Q35

            return Q35
        case "pc":
            from casemate.machine.boards.pc import PC

            return PC
        case "bare":
            from casemate.machine.boards.bare import BARE

            return BARE
