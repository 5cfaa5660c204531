"""The GUIDed table: real entries are found, broken ones named with their offset."""

from __future__ import annotations

import struct

import pytest
from support.firmware_images import require_image

from casemate.errors import ImageError
from casemate.firmware import guids
from casemate.firmware.guided_table import parse_guided_table
from casemate.firmware.image import FirmwareImage
from casemate.testing.images import ImageBuilder


def test_guid_text_turns_back_into_the_same_bytes() -> None:
    text = "96b582de-1fb2-45f7-baea-a366c55a082d"
    assert guids.guid_text(guids.guid(text)) == text
    assert guids.guid(text)[:4] == bytes.fromhex("de82b596")


def test_image_without_footer_has_no_table() -> None:
    assert parse_guided_table(ImageBuilder().build(), "x") is None


def test_entries_come_in_order_from_the_end() -> None:
    data = ImageBuilder().reset_block(0x80B004).secret(0x80C000).hashes(0x80CC00).build()
    image = FirmwareImage.from_bytes(data, "x")
    assert image.guided_table is not None
    assert [entry.name for entry in image.guided_table.entries] == [
        "SEV-ES reset block",
        "SEV launch-secret area",
        "SEV kernel-hashes area",
    ]
    assert image.sev_es_reset == 0x80B004
    assert image.sev_hashes is not None
    assert (image.sev_hashes.base, image.sev_hashes.size) == (0x80CC00, 0x400)


def test_area_with_base_zero_is_unusable() -> None:
    image = FirmwareImage.from_bytes(ImageBuilder().hashes(0, 0).build(), "x")
    assert image.sev_hashes is not None
    assert not image.sev_hashes.is_usable


def test_zero_reset_address_is_refused() -> None:
    image = FirmwareImage.from_bytes(ImageBuilder().reset_block(0).build(), "x")
    with pytest.raises(ImageError, match="reset address is zero"):
        _ = image.sev_es_reset


def test_short_entry_is_refused() -> None:
    image = FirmwareImage.from_bytes(ImageBuilder().entry(guids.SEV_ES_RESET_BLOCK, b"\1").build(), "x")
    with pytest.raises(ImageError, match="holds 1 bytes where 4 are expected"):
        _ = image.sev_es_reset


@pytest.mark.parametrize("total", [0, 17, 0xFFFF])
def test_table_of_impossible_length_is_refused(total: int) -> None:
    data = bytearray(ImageBuilder(4096).reset_block(1).build())
    struct.pack_into("<H", data, len(data) - 50, total)
    with pytest.raises(ImageError, match="the GUIDed table claims") as caught:
        parse_guided_table(bytes(data), "x")
    assert caught.value.offset == len(data) - 50


@pytest.mark.parametrize("length", [0, 17, 23, 0xFFFF])
def test_entry_of_impossible_length_is_refused(length: int) -> None:
    data = bytearray(ImageBuilder().reset_block(1).build())
    struct.pack_into("<H", data, len(data) - 50 - 18, length)
    with pytest.raises(ImageError, match="entry claims"):
        parse_guided_table(bytes(data), "x")


def test_unknown_entry_is_shown_by_its_guid() -> None:
    data = ImageBuilder().entry(guids.guid("00112233-4455-6677-8899-aabbccddeeff"), b"").build()
    table = parse_guided_table(data, "x")
    assert table is not None
    assert table.entries[0].name == "00112233-4455-6677-8899-aabbccddeeff"


def test_debian_12_code_has_five_entries_and_no_usable_area() -> None:
    image = FirmwareImage.load(require_image("OVMF_CODE.fd"))
    assert image.guided_table is not None
    assert len(image.guided_table.entries) == 5
    assert image.sev_es_reset == 0x80B004
    assert image.sev_hashes is not None
    assert not image.sev_hashes.is_usable
