"""A table that a task writes into a page of the documentation, between two comments (docs)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class PageTable(NamedTuple):
    """Where it stands: in ``page``, behind a comment that names ``task``; ``name`` where a page has several."""

    page: Path
    task: str
    name: str = "table"

    @property
    def begin(self) -> str:
        """The comment before the table."""
        return f"<!-- {self.name}: python -m tools.{self.task} --write -->\n"

    @property
    def end(self) -> str:
        """The comment behind it."""
        return f"<!-- end of {self.name} -->\n"

    def shown(self) -> str:
        """What stands there, without the empty lines around it. Raises ValueError if the page has no such place."""
        return self._parts()[1].strip("\n") + "\n"

    def write(self, text: str) -> None:
        """Put ``text``, whole lines, in the place of what stands there. Raises ValueError like ``shown``."""
        before, _, after = self._parts()
        self.page.write_text(f"{before}{self.begin}\n{text}\n{self.end}{after}", "utf-8")

    def _parts(self) -> tuple[str, str, str]:
        page = self.page.read_text("utf-8")
        if page.count(self.begin) != 1 or page.count(self.end) != 1:
            raise ValueError(f"{self.page.name} has not one place for its {self.name} by {self.task}")
        before, _, rest = page.partition(self.begin)
        table, _, after = rest.partition(self.end)
        return before, table, after
