"""When the file behind a flash unit goes to the disk (fdatasync(2))."""

from __future__ import annotations

from enum import StrEnum


class Sync(StrEnum):
    """When what the guest programmed goes to the disk; the file itself changes at once (docs/design/flash.md)."""

    ALWAYS = "always"
    """After each command: the disk never holds anything but the first commands, all of them."""
    IDLE = "idle"
    """When the guest has left its flash alone for a moment."""
    EXIT = "exit"
    """When the guest ends."""
