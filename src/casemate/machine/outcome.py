"""How a run ended and what was seen (docs/guide/boot.md has the JSON form)."""

import os
import time
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from casemate.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.host.snp_processor import Certificates


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
    INTERNAL_ERROR = ("internal-error", 6)
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


class Attestation:
    """An SNP guest's report (1184 bytes), as it would be given to the guest now, and its signer's certificates."""

    def __init__(self, report: bytes, ask_certificates: "Callable[[], Certificates]") -> None:
        self.report = report
        self._ask_certificates = ask_certificates

    @cached_property
    def certificates(self) -> "Certificates":
        """Asked for when they are first wanted, since a modelled chip takes a second to make them."""
        return self._ask_certificates()


class LaunchRecord(NamedTuple):
    """What the launch of a confidential guest showed, as plain data for the report (docs/guide/confidential.md)."""

    features: tuple[str, ...] = ()
    """Names of what the guest's save area says."""
    launch: dict[str, Any] | None = None
    """What was asked for and done, and how far it came."""
    measurement: dict[str, Any] | None = None
    """What was measured, and whether that was verified."""
    warnings: tuple[str, ...] = ()
    attestation: Attestation | None = None
    """Where somebody else than the guest can ask for it."""


class Outcome(NamedTuple):
    """The end of one run; ``detail`` explains the ending."""

    ending: Ending
    detail: str
    seconds: float
    serial: str
    report: dict[str, Any]
    """What was seen, in the documented form."""
    status: int | None = None
    """The exit code that the guest chose, where it has a device for that."""

    def __repr__(self) -> str:
        text = f"ending={self.ending!r}, detail={self.detail!r}, seconds={self.seconds!r}, serial={self.serial!r}"
        return f"Outcome({text})"

    @property
    def exit_code(self) -> int:
        """Exit code of the process."""
        return self.ending.exit_code if self.status is None else self.status

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

    def to_report(self, command: str) -> dict[str, Any]:
        """What a report contains: ``to_json``, and what was run now and on which system."""
        system = os.uname()
        run = {
            "command": command,
            "when": time.strftime("%Y-%m-%d %H:%M:%S+00:00", time.gmtime()),
            "system": f"{system.sysname} {system.release}, {system.machine}",
        }
        return self.to_json() | {"run": run}
