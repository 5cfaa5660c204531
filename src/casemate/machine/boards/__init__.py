"""Boards as tables of addresses, a module each, which is loaded for the guest that has it (docs/design/machine.md)."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from casemate.machine.boards.board import Board
from casemate.machine.spec import BoardName


def find_board(name: BoardName) -> Board:
    """The board of this name."""
    return cast(Board, import_module(f"{__name__}.{name}").BOARD)
