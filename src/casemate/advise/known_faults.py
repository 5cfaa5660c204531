"""Builds of firmware that are known not to start as they are asked to (LIMITATIONS.md; github.com/tianocore/edk2)."""

from __future__ import annotations

from collections.abc import Sequence

from casemate.firmware.age import OLDEST, edk2_release
from casemate.firmware.volume import FirmwareVolume

SNP_TOO_OLD = (
    "an edk2 of 2022 or before uses memory that it has not validated, and an SNP guest is stopped for that"
)


def is_too_old_for_snp(volumes: Sequence[FirmwareVolume]) -> bool:
    """Whether it is of the age of Debian 12's OVMF, which cannot be an SNP guest (mended in edk2 in 2024)."""
    return edk2_release(volumes) == OLDEST
