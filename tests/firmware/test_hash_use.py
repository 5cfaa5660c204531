"""Kernel hashes are compared by a program that knows their GUID, and by nothing else."""

from __future__ import annotations

import pytest

from casemate.firmware import guids
from casemate.firmware.hash_use import HashUse, hash_use
from casemate.firmware.image import FirmwareImage
from casemate.firmware.volume import read_volume
from casemate.testing.images import ImageBuilder, kernel_loader

GUID = guids.KERNEL_HASH_ENTRY
AS_IMMEDIATES = b"".join(b"\xc7\x04\x24" + GUID[at : at + 4] for at in range(0, 16, 4))


def use_of(file: bytes) -> HashUse:
    image = FirmwareImage.from_bytes(ImageBuilder().volume_of(file).build(), "x.fd")
    return hash_use(read_volume(image.data, header) for header in image.volumes)


@pytest.mark.parametrize("constants", [GUID, AS_IMMEDIATES], ids=["whole", "immediates"])
def test_loader_that_knows_the_entry_compares(constants: bytes) -> None:
    assert use_of(kernel_loader(b"code" + constants)) is HashUse.COMPARED


def test_loader_without_the_entry_ignores_it() -> None:
    assert use_of(kernel_loader(GUID[:12])) is HashUse.IGNORED


def test_nothing_is_claimed_of_a_build_without_the_loader() -> None:
    other = kernel_loader(b"").replace("QemuKernel".encode("utf-16-le"), "SomeKernel".encode("utf-16-le"))
    assert use_of(other) is HashUse.UNKNOWN
