"""How a run ended and what was seen (docs/guide/boot.md has the JSON form)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import Any

from casemate import __version__


class Ending(Enum):
    """Why a run ended, with the exit code of the process."""

    UNTIL = ("until", 0)
    LEFT = ("left", 0)
    QUIT = ("quit", 0)
    POWER_OFF = ("power-off", 0)
    EXIT_PORT = ("exit-port", 0)
    LAUNCHED = ("launched", 0)
    RESET = ("reset", 0)
    POWER_CUT = ("power-cut", 0)
    VIOLATION = ("violation", 1)
    TRIPLE_FAULT = ("triple-fault", 1)
    KERNEL_PANIC = ("kernel-panic", 1)
    GAVE_UP = ("gave-up", 1)
    NO_PROGRESS = ("ended-early", 1)
    STUCK = ("no-progress", 1)
    SEV_TERMINATION = ("sev-termination", 1)
    HOST_LIMIT = ("host-limit", 5)
    TIMEOUT = ("timeout", 7)
    INTERRUPTED = ("interrupted", 130)
    TERMINATED = ("terminated", 143)

    @property
    def word(self) -> str:
        """The word used in JSON and text."""
        return self.value[0]

    @property
    def exit_code(self) -> int:
        """Exit code of the process."""
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one run; ``detail`` explains the ending."""

    ending: Ending
    detail: str
    seconds: float
    serial: str
    facts: dict[str, Any]
    """``report``, but maybe without the digest of the ``--bios`` image."""
    bios: bytes | None = None
    """That image."""

    def __repr__(self) -> str:
        return f"Outcome({self.ending}, {self.detail!r}, {self.seconds!r}, {self.serial!r})"

    @property
    def report(self) -> dict[str, Any]:
        """What was seen, in the documented form."""
        if self.bios is not None and self.facts["bios"]["sha256"] is None:
            # Only here, for nobody may ask, and loading a library of hashes takes longer than starting a VM.

            digest = sha256(self.bios).hexdigest()
            self.facts["bios"].update(input_sha256=digest, sha256=digest)
        return self.facts

    @property
    def exit_code(self) -> int:
        """Exit code of the process."""
        return self.ending.exit_code

    def to_json(self) -> dict[str, Any]:
        """The documented JSON form, as plain data."""

        head = {
            "version": __version__,
            "outcome": self.ending.word,
            "detail": self.detail,
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 3),
        }
        return head | self.report | {"serial": self.serial}
