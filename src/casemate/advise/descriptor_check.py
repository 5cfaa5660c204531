"""Whether a firmware descriptor is right about the files that it offers (QEMU docs/interop/firmware.json)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from casemate.advise.claims import Claim, compare_claim
from casemate.advise.inspect import inspect_image
from casemate.advise.store_check import check_store
from casemate.errors import CasemateError, ImageError
from casemate.firmware.descriptors import Descriptor, parse_descriptor
from casemate.firmware.image import FirmwareImage
from casemate.firmware.placement import validate_pair
from casemate.firmware.qcow2 import MAGIC, read_qcow2
from casemate.qemu.releases import nearest

_FOLDERS = ("etc/qemu/firmware", "usr/share/qemu/firmware")
_DEVICES, _MODES = ("flash", "memory", "kernel", "igvm"), ("split", "combined", "stateless")
_FEATURES = (
    "acpi-s3", "acpi-s4", "amd-sev", "amd-sev-es", "amd-sev-snp", "enrolled-keys", "host-uefi-vars", "intel-tdx",
    "requires-smm", "secure-boot", "verbose-dynamic", "verbose-static",
)  # fmt: skip
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
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" and (
        b'"interface-types"' in head or b'"mapping"' in head
    )


def check_descriptor(path: Path) -> DescriptorReport:
    """Judge a descriptor and its files. Raises ImageError if it is malformed."""
    if path.stat().st_size > _LARGEST:
        raise ImageError(path, f"over {_LARGEST} bytes are no descriptor", "give the descriptor itself")
    descriptor = parse_descriptor(path, _root(path))
    if descriptor is None:
        raise ImageError(path, "the descriptor is empty", "remove it")
    problems = list(_contradictions(descriptor))
    images: list[FirmwareImage] = []
    for file, form in zip(descriptor.files, descriptor.formats, strict=True):
        try:
            images.append(_load(file, form))
        except CasemateError as error:
            problems.append(str(error))
    claim = None
    if images and images[0].name == str(descriptor.executable):
        claim = compare_claim(descriptor, inspect_image(images[0]))
        try:
            if len(images) > 1:
                validate_pair(images[0], images[1])
        except CasemateError as error:
            problems.append(str(error))
        if descriptor.device == "flash" and descriptor.mode == "combined" and not images[0].variable_volume:
            problems.append(f"mode is combined, and {images[0].name} has no variable store")
        if "enrolled-keys" in descriptor.features and len(images) == len(descriptor.files):
            problems += _missing_keys(images[-1])
    return DescriptorReport(path, descriptor, claim, tuple(problems))


def _contradictions(descriptor: Descriptor) -> Iterator[str]:
    """What QEMU's schema rules out, and libvirt ignores."""
    if descriptor.device not in _DEVICES:
        yield f"device {descriptor.device[:40]!r} does not exist{nearest(descriptor.device, _DEVICES)}"
    if descriptor.mode not in _MODES:
        yield f"mode {descriptor.mode[:40]!r} does not exist{nearest(descriptor.mode, _MODES)}"
    elif descriptor.device == "flash" and (descriptor.vars_template is None) is (descriptor.mode == "split"):
        has = "no nvram-template" if descriptor.vars_template is None else "an nvram-template"
        yield f"mode is {descriptor.mode}, and there is {has}"
    for feature in descriptor.features:
        if feature not in _FEATURES:
            yield f"feature {feature[:40]!r} does not exist{nearest(feature, _FEATURES)}"


def _load(file: Path, form: str) -> FirmwareImage:
    """What a guest sees of a file. Raises ImageError if it cannot be read, or is in another format than ``form``."""
    image = FirmwareImage.load(file)
    is_qcow2 = image.data.startswith(MAGIC)
    if is_qcow2 != (form == "qcow2"):
        cause = f"the file is {'qcow2' if is_qcow2 else 'raw'}, and the descriptor says {form[:40]}"
        raise ImageError(file, cause, "correct the format")
    return (
        FirmwareImage(image.name, read_qcow2(image.data, image.name, lambda _: None)) if is_qcow2 else image
    )


def _missing_keys(store: FirmwareImage) -> list[str]:
    try:
        variables = check_store(store.data, store.name).variables
    except CasemateError:
        return []
    has_keys = any(variable.name == "PK" and variable.data for variable in variables)
    return [] if has_keys else [f"enrolled-keys is claimed, and {store.name} has no platform key"]


def _root(path: Path) -> Path:
    """The folder that its paths are relative to: that of an unpacked package, or the system's."""
    folder = path.resolve().parent
    for place in _FOLDERS:
        if folder.as_posix().endswith(f"/{place}"):
            return folder.parents[place.count("/")]
    return Path("/")
