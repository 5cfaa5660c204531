"""Whether a firmware descriptor is right about the files that it offers (QEMU docs/interop/firmware.json)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from casemate.advise.claims import Claim, compare_claim
from casemate.advise.inspect import inspect_image
from casemate.errors import CasemateError, ImageError
from casemate.firmware.descriptors import Descriptor, parse_descriptor
from casemate.firmware.image import FirmwareImage
from casemate.firmware.placement import validate_pair

_FOLDERS = ("etc/qemu/firmware", "usr/share/qemu/firmware")
_LARGEST = 1 << 20
"""Bytes of a descriptor."""


class DescriptorReport(NamedTuple):
    """What is wrong with one descriptor; nothing is if there are no problems and no false claims."""

    path: Path
    descriptor: Descriptor
    claim: Claim | None
    """What it says of its executable against what is in it; None if that cannot be read."""
    problems: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """Whether a guest gets what it offers."""
        return not self.problems and not (self.claim and self.claim.false)


def is_descriptor(path: Path) -> bool:
    """Whether a file looks like a descriptor, by its first byte and its name or words."""
    try:
        with path.open("rb") as file:
            head = file.read(_LARGEST)
    except (OSError, ValueError):
        return False
    return head.lstrip()[:1] == b"{" and (b'"interface-types"' in head or b'"mapping"' in head)


def check_descriptor(path: Path) -> DescriptorReport:
    """Judge a descriptor and its files. Raises ImageError if it is malformed."""
    if path.stat().st_size > _LARGEST:
        raise ImageError(path, f"over {_LARGEST} bytes are no descriptor", "give the descriptor itself")
    descriptor = parse_descriptor(path, _root(path))
    if descriptor is None:
        raise ImageError(path, "the descriptor is empty", "remove it")
    problems: list[str] = []
    images: list[FirmwareImage] = []
    for file in descriptor.files:
        try:
            images.append(FirmwareImage.load(file))
        except CasemateError as error:
            problems.append(str(error))
    claim = None
    if images and images[0].name == str(descriptor.executable) and descriptor.formats == {"raw"}:
        claim = compare_claim(descriptor, inspect_image(images[0]))
        if len(images) > 1:
            try:
                validate_pair(images[0], images[1])
            except CasemateError as error:
                problems.append(str(error))
    return DescriptorReport(path, descriptor, claim, tuple(problems))


def _root(path: Path) -> Path:
    """The folder that its paths are relative to: that of an unpacked package, or the system's."""
    folder = path.resolve().parent
    for place in _FOLDERS:
        if folder.as_posix().endswith(f"/{place}"):
            return folder.parents[place.count("/")]
    return Path("/")
