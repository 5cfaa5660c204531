"""casemate: a virtual machine monitor for guest firmware (docs/design/architecture.md)."""

from __future__ import annotations

from casemate.errors import CasemateError
from casemate.firmware.image import FirmwareImage
from casemate.machine.boot import Attachments, boot
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.spec import MachineSpec
from casemate.version import __version__

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
