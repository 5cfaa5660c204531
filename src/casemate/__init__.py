"""casemate: a virtual machine monitor for guest firmware (docs/design/architecture.md).

The names of ``__all__`` are the public interface; each is loaded when it is first used, so that a command, or a program
that wants one thing, pays for its imports alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from casemate.version import __version__

if TYPE_CHECKING:
    from casemate.abi.guest_kind import GuestKind
    from casemate.api.advise import inspect, lint, open_variables
    from casemate.api.boot import boot
    from casemate.api.firmware import find_firmware
    from casemate.api.measure import Prediction, explain, measure
    from casemate.api.variables import new_variables
    from casemate.api.verify import verify
    from casemate.confidential.preparation import LaunchOptions
    from casemate.errors import CasemateError
    from casemate.firmware.image import FirmwareImage
    from casemate.machine.boot import Attachments
    from casemate.machine.outcome import Ending, Outcome
    from casemate.machine.spec import MachineSpec

_HOMES = {
    "Attachments": "casemate.machine.boot",
    "CasemateError": "casemate.errors",
    "Ending": "casemate.machine.outcome",
    "FirmwareImage": "casemate.firmware.image",
    "GuestKind": "casemate.abi.guest_kind",
    "LaunchOptions": "casemate.confidential.preparation",
    "MachineSpec": "casemate.machine.spec",
    "Outcome": "casemate.machine.outcome",
    "Prediction": "casemate.api.measure",
    "boot": "casemate.api.boot",
    "explain": "casemate.api.measure",
    "find_firmware": "casemate.api.firmware",
    "inspect": "casemate.api.advise",
    "lint": "casemate.api.advise",
    "measure": "casemate.api.measure",
    "new_variables": "casemate.api.variables",
    "open_variables": "casemate.api.advise",
    "verify": "casemate.api.verify",
}

__all__ = [
    "Attachments",
    "CasemateError",
    "Ending",
    "FirmwareImage",
    "GuestKind",
    "LaunchOptions",
    "MachineSpec",
    "Outcome",
    "Prediction",
    "__version__",
    "boot",
    "explain",
    "find_firmware",
    "inspect",
    "lint",
    "measure",
    "new_variables",
    "open_variables",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
