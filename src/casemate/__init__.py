"""casemate: a virtual machine monitor for guest firmware (docs/design/architecture.md).

The names of ``__all__`` are the public interface; each is loaded when it is first used, so that a command, or a program
that wants one thing, pays for its imports alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from casemate.version import __version__

if TYPE_CHECKING:
    from casemate.errors import CasemateError
    from casemate.firmware.image import FirmwareImage
    from casemate.machine.boot import Attachments, boot
    from casemate.machine.outcome import Ending, Outcome
    from casemate.machine.spec import MachineSpec

_HOMES = {
    "Attachments": "casemate.machine.boot",
    "CasemateError": "casemate.errors",
    "Ending": "casemate.machine.outcome",
    "FirmwareImage": "casemate.firmware.image",
    "MachineSpec": "casemate.machine.spec",
    "Outcome": "casemate.machine.outcome",
    "boot": "casemate.machine.boot",
}

__all__ = [
    "Attachments",
    "CasemateError",
    "Ending",
    "FirmwareImage",
    "MachineSpec",
    "Outcome",
    "__version__",
    "boot",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
