"""Finding firmware for a guest as a call (docs/guide/python.md)."""

from __future__ import annotations

import os
from pathlib import Path

from casemate.abi.guest_kind import GuestKind
from casemate.firmware.descriptors import FirmwarePair, firmware_roots
from casemate.firmware.descriptors import find_firmware as find_pair
from casemate.firmware.image import FirmwareImage
from casemate.firmware.sec_core import unfit_for_sev_es


def find_firmware(kind: GuestKind | str = GuestKind.PLAIN) -> FirmwarePair:
    """The installed OVMF pair that a guest of this kind can boot: code, and the template of its variables.

    Searches the folders of ``$CASEMATE_FIRMWARE`` first, then the system's. Raises UnsupportedError if there is none.
    """

    def unfit(code: Path) -> str | None:
        return unfit_for_sev_es(FirmwareImage.load(code)) if kind == GuestKind.SEV_ES else None

    return find_pair(firmware_roots(os.environ), unfit)
