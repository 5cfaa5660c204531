"""How a run ended and what was seen (docs/guide/boot.md has the JSON form)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Ending(Enum):
    """Why a run ended, with the exit code of the process."""

    UNTIL = ("until", 0)
    LEFT = ("left", 0)
    POWER_OFF = ("power-off", 0)
    EXIT_PORT = ("exit-port", 0)
    LAUNCHED = ("launched", 0)
    RESET = ("reset", 0)
    POWER_CUT = ("power-cut", 0)
    VIOLATION = ("violation", 1)
    TRIPLE_FAULT = ("triple-fault", 1)
    KERNEL_PANIC = ("kernel-panic", 1)
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
    """The end of one run. ``report`` has what was seen, in the documented form; ``detail`` explains the ending."""

    ending: Ending
    detail: str
    seconds: float
    serial: str
    report: dict[str, Any] = field(repr=False)

    @property
    def exit_code(self) -> int:
        """Exit code of the process."""
        return self.ending.exit_code

    def to_json(self) -> dict[str, Any]:
        """The documented JSON form, as plain data."""
        from casemate import __version__

        head = {
            "version": __version__,
            "outcome": self.ending.word,
            "detail": self.detail,
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 3),
        }
        return head | self.report | {"serial": self.serial}
