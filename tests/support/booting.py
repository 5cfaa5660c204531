"""``casemate boot`` in this process, and the images that it boots; the fixtures of tests/conftest.py give both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from casemate.guests.entry import Bits


class Ended(NamedTuple):
    """What a command came to."""

    code: int
    """The exit code."""
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What ``--json`` printed."""
        document: dict[str, Any] = json.loads(self.out)
        return document


class BootCli(Protocol):
    """The fixture ``boot_cli``."""

    def __call__(self, *words: str | Path) -> Ended:
        """Run ``casemate boot`` with these words to its end."""


class TinyGuest(Protocol):
    """The fixture ``tiny_guest``."""

    def __call__(self, code: str | bytes, bits: Bits = 32, name: str = "guest.bin") -> Path:
        """Write the image of a guest that does ``code``: its machine code, or its source for ``assemble``."""
