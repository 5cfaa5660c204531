"""What ``--bios`` demands of a file, and every board of the firmware in it (QEMU hw/i386/x86-common.c)."""

from __future__ import annotations

from casemate.errors import ImageError
from casemate.firmware.completeness import (
    BIOS_GRANULE,
    is_variable_store,
    validate_code,
    validate_multiple,
    validate_raw,
)
from casemate.firmware.image import FirmwareImage
from casemate.firmware.smm import requires_smm

MAX_FLASH = 8 << 20
"""Bytes of all flash units together, the default of QEMU's ``max-fw-size``."""


def validate_bios(image: FirmwareImage) -> None:
    """Check a file for ``--bios``. Raises ImageError for a broken rule."""
    validate_raw(image)
    if is_variable_store(image):
        raise ImageError(image.name, "this is a variable store, it holds no code", "give the firmware itself")
    remedy = "a split CODE image goes into flash: use --code"
    validate_multiple(image, BIOS_GRANULE, "--bios", remedy if image.code_volumes else "")
    if image.size > MAX_FLASH:
        raise ImageError(
            image.name, f"{image.size} bytes, at most {MAX_FLASH} fit below 4 GiB", "use an x86_64 image"
        )
    validate_boots_without_smm(image)


def validate_boots_without_smm(image: FirmwareImage) -> None:
    """Check that a board without SMM can start the image. Raises ImageError if not."""
    validate_code(image)
    if requires_smm(image.data):
        cause = "this build needs System Management Mode (SMM_REQUIRE), which casemate's boards do not have"
        raise ImageError(image.name, cause, "use a build without it, such as OVMF_CODE_4M.fd")
