"""What every bench gives back: a table of medians, to print or as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Cell = str | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under ``columns``; ``notes`` say how it was measured."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [self.columns, *(tuple(_text(cell) for cell in row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        body = (
            "  ".join(
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return "\n".join([self.title, *body, *(f"  {note}" for note in self.notes)])


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else f"{cell:.2f}" if cell < 100 else f"{cell:.0f}"
