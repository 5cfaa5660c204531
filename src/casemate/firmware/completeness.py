"""Whether a file is raw, whole firmware, wherever it goes (UEFI PI 1.8 vol. 3, 2.2.2; Intel SDM vol. 3, 9.1.4)."""

from __future__ import annotations

from casemate.address import PAGE_SIZE
from casemate.errors import ImageError
from casemate.firmware.image import FirmwareImage
from casemate.firmware.wrapper import find_wrapper

BIOS_GRANULE = 64 << 10
"""Bytes; the size of a ``--bios`` file must be a multiple."""
_RESET_VECTOR_SIZE = 16


def validate_complete(image: FirmwareImage) -> None:
    """Check that a file can be firmware at all. Raises ImageError if it is wrapped, truncated or holds no code."""
    validate_raw(image)
    validate_multiple(image, PAGE_SIZE, "memory")
    if is_variable_store(image):
        raise ImageError(image.name, "this is a variable store, it holds no code", "give the firmware itself")
    validate_code(image)


def validate_raw(image: FirmwareImage) -> None:
    """Check that nothing is wrapped around the firmware. Raises ImageError if so."""
    if wrapper := find_wrapper(image.data):
        what, remedy = wrapper
        raise ImageError(image.name, f"this is {what}, not raw firmware", remedy)


def validate_multiple(image: FirmwareImage, granule: int, where: str, remedy: str = "") -> None:
    """Check that the size is a multiple of ``granule`` bytes, which ``where`` needs. Raises ImageError if not."""
    if image.size % granule:
        cause = f"size {image.size} is not a multiple of {granule >> 10} KiB, as {where} needs"
        raise ImageError(image.name, cause, remedy or "give a raw, complete firmware image")


def validate_code(image: FirmwareImage) -> None:
    """Check that all volumes end inside the file and code is at the reset vector. Raises ImageError if not."""
    for volume in image.volumes:
        if volume.end > image.size:
            cause = f"the volume claims {volume.length:#x} bytes, {image.size - volume.offset:#x} are there"
            raise ImageError(image.name, cause, "the file is truncated; use a complete one", volume.offset)
    vector = image.data[-_RESET_VECTOR_SIZE:]
    if vector.count(vector[0]) == len(vector):
        cause = f"no reset vector: the last {len(vector)} bytes are all {vector[0]:#04x}"
        raise ImageError(image.name, cause, "give firmware that ends in code", image.size - len(vector))


def is_variable_store(image: FirmwareImage) -> bool:
    """Whether the file holds variables and nothing else."""
    return image.variable_volume is not None and not image.code_volumes
