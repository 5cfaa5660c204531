"""casemate: a virtual machine monitor for guest firmware (docs/design/architecture.md).

Layers, lowest first: ``abi`` (other people's numbers), ``firmware`` and ``host``, ``memory`` and ``measure``,
``devices``, ``machine``, ``advise``, ``qmp``, ``cli``. A module imports only from lower layers or its own package.
"""

from __future__ import annotations

from casemate.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from casemate.errors import CasemateError
    from casemate.firmware.image import FirmwareImage
    from casemate.machine.boot import Attachments, boot
    from casemate.machine.outcome import Ending, Outcome
    from casemate.machine.spec import MachineSpec

__version__ = "0.1.0"

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
    # Public names load what they need when they are first used: a command pays for its own imports only.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(__import__(_HOMES[name], fromlist=(name,)), name)
