"""What flash demands of files (QEMU hw/i386/pc_sysfw.c).

edk2 images bring rules of their own: flash of 1, 2, 4 or 8 MiB in all, with the variable store at its bottom.
They are checked only where CODE holds a firmware volume, so that other code may be tried with any store.
"""

from __future__ import annotations

from casemate.address import PAGE_SIZE
from casemate.errors import ImageError, SpecError
from casemate.firmware.bios import MAX_FLASH, validate_boots_without_smm
from casemate.firmware.completeness import is_variable_store, validate_multiple, validate_raw
from casemate.firmware.image import FirmwareImage
from casemate.firmware.varstore import has_rewrite_in_spare, parse_variable_store

_MIB = 1 << 20

_REPAIR = "run casemate vars repair on it, or copy a VARS template"


def validate_flash(code: FirmwareImage, variables: FirmwareImage | None = None) -> None:
    """Check the files for flash unit 0 (``code``) and 1. Raises ImageError or SpecError for a broken rule."""
    for image in (code, variables):
        if image is not None:
            validate_raw(image)
            validate_multiple(image, PAGE_SIZE, "flash")
    _validate_roles(code, variables)
    total = code.size + (variables.size if variables else 0)
    if total > MAX_FLASH:
        cause = f"{total} bytes of flash in all, at most {MAX_FLASH} fit below 4 GiB"
        raise ImageError(code.name, cause, "use an image for x86_64, of 2 or 4 MiB")
    validate_boots_without_smm(code)
    if variables is not None and code.code_volumes:
        validate_pair(code, variables)


def validate_pair(code: FirmwareImage, variables: FirmwareImage) -> None:
    """Check that a variable store is healthy and the one that an edk2 image looks for. Raises ImageError if not."""
    _validate_store(variables)
    if code.variable_volume:
        cause = "this image brings its own variable store, yet --vars is given"
        raise ImageError(code.name, cause, "leave --vars out, or use the split CODE image")
    expected = expected_store_size(code)
    if variables.size != expected:
        cause = (
            f"{variables.size:#x} bytes of variables do not belong to {code.name}, a"
            f" {(code.size + expected) // _MIB}M build that looks for {expected:#x} bytes"
        )
        raise ImageError(variables.name, cause, "take CODE and VARS from one pair (both 2M or both 4M)")


def _validate_roles(code: FirmwareImage, variables: FirmwareImage | None) -> None:
    if not is_variable_store(code):
        return
    if variables is not None and variables.code_volumes:
        raise SpecError(
            f"--code {code.name} is a variable store and --vars {variables.name} is code",
            "swap the two files",
        )
    raise ImageError(
        code.name, "this is a variable store, given as --code", "give OVMF_CODE here, OVMF_VARS as --vars"
    )


def _validate_store(image: FirmwareImage) -> None:
    if not image.data.strip(b"\xff") or not image.data.strip(b"\0"):
        cause = (
            f"the variable store is blank (all {image.data[0]:#04x}), which edk2 firmware does not survive"
        )
        raise ImageError(
            image.name, cause, "copy the VARS template of the same package, such as OVMF_VARS_4M.fd"
        )
    volume = image.variable_volume  # maybe the copy in the spare block
    at_start = volume is not None and volume.offset == 0
    has_headers = volume is not None and at_start and parse_variable_store(image.data, volume) is not None
    if not has_headers and has_rewrite_in_spare(image.data):
        cause = "rewriting the variable store was cut off, and firmware would lose all of its variables"
        raise ImageError(image.name, cause, _REPAIR, 0)
    if volume is None or not at_start:
        raise ImageError(image.name, "no variable store: no NVRAM volume header", _REPAIR, 0)
    if image.code_volumes:
        raise ImageError(image.name, "this file holds code, given as --vars", "give the VARS file alone")
    if volume.length != image.size:
        cause = f"the variable store claims {volume.length:#x} bytes of a file of {image.size:#x}"
        raise ImageError(image.name, cause, "the file is truncated or padded; copy a VARS template", 32)
    if not has_headers:
        raise ImageError(image.name, "the variable store has no store header", _REPAIR, volume.header_length)


def expected_store_size(code: FirmwareImage) -> int:
    """Bytes of the store that a split edk2 CODE image looks for: together they fill a power of two."""
    return (1 << (code.size - 1).bit_length()) - code.size
