"""SEV and TDX metadata: sections of real images, and every way in which they can be broken."""

from __future__ import annotations

import struct

import pytest
from support.firmware_images import require_image

from casemate.errors import ImageError
from casemate.firmware import guids
from casemate.firmware.image import FirmwareImage
from casemate.firmware.sev_metadata import SevSectionType
from casemate.firmware.tdvf import TdvfSectionType
from casemate.testing.images import ImageBuilder

HOB = (0, 0, 0x809000, 0x2000, TdvfSectionType.TD_HOB, 0)
BFV = (0, 0x1000, 0xFFFE0000, 0x20000, TdvfSectionType.BFV, 1)


def image(builder: ImageBuilder) -> FirmwareImage:
    return FirmwareImage.from_bytes(builder.build(), "x.fd")


def test_sev_sections_are_read() -> None:
    metadata = image(ImageBuilder().sev_metadata((0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3))).sev_metadata
    assert metadata is not None
    assert metadata.has(SevSectionType.CPUID)
    assert not metadata.has(SevSectionType.KERNEL_HASHES)


def test_sev_section_of_size_zero_sets_nothing_apart() -> None:
    metadata = image(ImageBuilder().sev_metadata((0, 0, SevSectionType.SVSM_CAA))).sev_metadata
    assert metadata is not None
    assert not metadata.has(SevSectionType.SVSM_CAA)


def test_sev_metadata_of_wrong_length_is_refused() -> None:
    with pytest.raises(ImageError, match="17 bytes long where 1 sections take 28"):
        _ = image(ImageBuilder().sev_metadata((1, 2, 3), length=17)).sev_metadata


def test_sev_metadata_of_unknown_version_is_refused() -> None:
    with pytest.raises(ImageError, match="version 2"):
        _ = image(ImageBuilder().sev_metadata((1, 2, 3), version=2)).sev_metadata


def test_metadata_pointer_outside_the_file_is_refused() -> None:
    builder = ImageBuilder().entry(guids.SEV_METADATA_OFFSET, struct.pack("<I", 1 << 30))
    with pytest.raises(ImageError, match="points 0x40000000 bytes before the end"):
        _ = image(builder).sev_metadata


def test_pointer_at_other_bytes_is_refused() -> None:
    builder = ImageBuilder().entry(guids.SEV_METADATA_OFFSET, struct.pack("<I", 0x900))
    with pytest.raises(ImageError, match="not b'ASEV'"):
        _ = image(builder).sev_metadata


def test_tdx_sections_are_read() -> None:
    metadata = image(ImageBuilder().tdx_metadata([BFV, HOB])).tdvf
    assert metadata is not None
    assert metadata.sections[0].is_measured
    assert metadata.sections[0].type is TdvfSectionType.BFV


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ([HOB], "1 sections where two are the least"),
        ([BFV, BFV], "no place for the TD HOB"),
        ([HOB, (0, 0x1000, 0, 0, 0, 1)], "0x1000 bytes of data for 0x0 bytes of memory"),
        ([HOB, (0, 0x1000, 0x10, 0x1000, 0, 1)], "address 0x10 is not a multiple of 4 KiB"),
        ([HOB, (0, 0x1000, 0, 0x1001, 0, 1)], "memory size 0x1001 is not a multiple of 4 KiB"),
        ([HOB, (0, 0, 0, 0x1000, 0, 1)], "BFV: there is no data"),
        ([HOB, (0, 0x10, 0, 0x1000, 3, 0)], "TEMP_MEM: 0x10 bytes of data where none may be"),
        ([HOB, (0, 0, 0, 0x1000, 4, 0)], "unsupported type 4"),
    ],
)
def test_tdx_metadata_that_no_launch_takes_is_refused(
    sections: list[tuple[int, int, int, int, int, int]], message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        _ = image(ImageBuilder().tdx_metadata(sections)).tdvf


def test_tdx_metadata_of_unknown_version_is_refused() -> None:
    with pytest.raises(ImageError, match="version 7"):
        _ = image(ImageBuilder().tdx_metadata([HOB, BFV], version=7)).tdvf


def test_tdx_metadata_without_its_guid_is_refused() -> None:
    builder = ImageBuilder().entry(guids.TDX_METADATA_OFFSET, struct.pack("<I", 0x900))
    with pytest.raises(ImageError, match="no TDVF GUID"):
        _ = image(builder).tdvf


def test_debian_12_combined_image_holds_both() -> None:
    firmware = FirmwareImage.load(require_image("OVMF.fd", "bookworm"))
    assert firmware.sev_metadata is not None
    assert [(hex(s.base), s.type) for s in firmware.sev_metadata.sections][2:4] == [
        ("0x80d000", 2),
        ("0x80e000", 3),
    ]
    assert firmware.tdvf is not None
    assert [section.type.name for section in firmware.tdvf.sections] == [
        "BFV",
        "CFV",
        "TEMP_MEM",
        "TEMP_MEM",
        "TD_HOB",
        "TEMP_MEM",
    ]
