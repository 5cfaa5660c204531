"""Plans how a TD is built from a TDVF image (Intel TDX Virtual Firmware Design Guide; QEMU target/i386/kvm/tdx.c)."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise

from casemate.abi.guest_kind import GuestKind
from casemate.address import Gpa
from casemate.digest.plan import LaunchPlan, TdxOperation, TdxPages
from casemate.errors import ImageError
from casemate.firmware.completeness import validate_complete
from casemate.firmware.image import FirmwareImage
from casemate.firmware.tdvf import TdvfSection

_COMBINED = "give the image that holds variables and code together (OVMF.fd, OVMF.inteltdx.ms.fd)"


class AddOrder(StrEnum):
    """In which order the pages of a measured section are added and measured; it shows in MRTD."""

    INTERLEAVED = "interleaved"
    """Each page is added and measured: Linux 6.16, and the patches before it but for version 19."""
    TWO_PASS = "two-pass"
    """All pages of a section are added, then all are measured: version 19 of the patches, Ubuntu 24.04's QEMU 8.2.2."""


def plan_tdx(image: FirmwareImage, order: AddOrder = AddOrder.INTERLEAVED) -> LaunchPlan:
    """The sections of a TD in metadata order. Raises ImageError if the image cannot be launched so."""
    validate_complete(image)
    metadata = image.tdvf
    if metadata is None:
        remedy = "use a build for TDX (X64 only, edk2 of 2022 or newer)"
        raise ImageError(image.name, "no TDX metadata: nothing says what a TD is built from", remedy)
    steps = [step for section in metadata.sections for step in _steps(image, section, order)]
    _validate_apart(image, metadata.sections)
    return LaunchPlan(GuestKind.TDX, tuple(steps))


def _steps(image: FirmwareImage, section: TdvfSection, order: AddOrder) -> Iterator[TdxPages]:
    data = b""
    if section.type.is_from_file:
        end = section.data_offset + section.raw_size
        if end > image.size:
            cause = f"{section.type.name} ends at {end:#x} of a file of {image.size:#x}"
            raise ImageError(image.name, cause, _COMBINED)
        data = image.data[section.data_offset : end]
    operations = [TdxOperation.ADD]
    if section.is_measured:
        two = [TdxOperation.ADD, TdxOperation.EXTEND]
        operations = two if order is AddOrder.TWO_PASS else [TdxOperation.ADD_EXTEND]
    for operation in operations:
        yield TdxPages(section.type.name, Gpa(section.base), section.size, operation, data)


def _validate_apart(image: FirmwareImage, sections: tuple[TdvfSection, ...]) -> None:
    ordered = sorted((section for section in sections if section.size), key=lambda section: section.base)
    for one, other in pairwise(ordered):
        if one.base + one.size > other.base:
            cause = (
                f"{one.type.name} and {other.type.name} overlap at {other.base:#x}: no page is added twice"
            )
            raise ImageError(image.name, cause, "the image is damaged; use another build")
