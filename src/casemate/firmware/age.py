"""Which edk2 a build is of, as far as it says so itself (edk2 OvmfPkg/SmbiosPlatformDxe)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from casemate.firmware.volume import FirmwareVolume

_DRIVER = "SmbiosPlatformDxe"
_FIXED_DATE = b"02/06/2015"
"""What the driver told every guest before it told the version of its build, in 2023."""
_RELEASE = re.compile(rb"2\0(0\0\d\0\d\0)\.\0(\d\0\d\0)")
OLDEST = (2022, 11)
"""The newest release that has no version of its own in it."""


def edk2_release(volumes: Iterable[FirmwareVolume]) -> tuple[int, int] | None:
    """Year and month of the release, ``OLDEST`` for that and all before, or None if the build does not say."""
    programs = (
        file.program
        for volume in volumes
        for file in volume.all_files()
        if file.name == _DRIVER and file.program
    )
    for program in programs:
        if match := _RELEASE.search(program):
            year, month = (group.replace(b"\0", b"").decode() for group in match.groups())
            return 2000 + int(year), int(month)
        if _FIXED_DATE in program:
            return OLDEST
    return None
