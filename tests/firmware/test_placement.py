"""The rules for flash and --bios: each broken rule is refused with the file, the rule and the remedy."""

from __future__ import annotations

import lzma
import struct

import pytest
from support.firmware_images import find_images, require_image

from casemate.errors import CasemateError, ImageError, SpecError
from casemate.firmware import guids
from casemate.firmware.bios import validate_bios
from casemate.firmware.image import FirmwareImage
from casemate.firmware.placement import validate_flash
from casemate.firmware.smm import requires_smm
from casemate.testing.images import ImageBuilder, variable_store


def firmware(data: bytes, name: str = "x.fd") -> FirmwareImage:
    return FirmwareImage.from_bytes(data, name)


CODE_4M = ImageBuilder(0x37C000, volume=True).build()
CODE_2M = ImageBuilder(0x1E0000, volume=True).build()
VARS_4M = variable_store(0x84000)
VARS_2M = variable_store(0x20000)


def lzma_section(contents: bytes) -> bytes:
    stream = lzma.compress(contents, format=lzma.FORMAT_ALONE)
    return (
        struct.pack("<I", len(stream) + 24 | 2 << 24)
        + guids.LZMA_SECTION
        + struct.pack("<HH", 24, 1)
        + stream
    )


@pytest.mark.parametrize(("code", "variables"), [(CODE_4M, VARS_4M), (CODE_2M, VARS_2M), (CODE_4M, None)])
def test_matching_pair_is_taken(code: bytes, variables: bytes | None) -> None:
    validate_flash(firmware(code), firmware(variables) if variables else None)


def test_code_without_volumes_may_have_any_store() -> None:
    validate_flash(firmware(ImageBuilder(4096).build()), firmware(b"\xff" * 4096))


@pytest.mark.parametrize(
    ("code", "variables", "message"),
    [
        (CODE_4M[:-1], None, "size 3653631 is not a multiple of 4 KiB"),
        (VARS_4M, None, "this is a variable store, given as --code"),
        (CODE_4M, VARS_2M, "a 4M build that looks for 0x84000 bytes"),
        (CODE_2M, VARS_4M, "a 2M build that looks for 0x20000 bytes"),
        (CODE_4M, b"\xff" * 0x84000, "blank"),
        (CODE_4M, bytes(0x84000), "blank"),
        (CODE_4M, b"\x5a" * 0x84000, "no NVRAM volume header"),
        (CODE_4M, CODE_4M[:0x84000], "no NVRAM volume header"),
        (CODE_4M, VARS_4M[:0x20000], "claims 0x84000 bytes of a file of 0x20000"),
        (VARS_4M + CODE_4M, VARS_4M, "brings its own variable store"),
        (b"\xff" * 0x37C000, None, "no reset vector"),
        (b"\xff" * (16 << 20), None, "at most 8388608 fit"),
        (b"QFI\xfb".ljust(4096, b"\0"), None, "qcow2"),
        (CODE_4M, b"QFI\xfb".ljust(0x84000, b"\0"), "qcow2"),
        (guids.guid("6dcbd5ed-e82d-4c44-bda1-7194199ad92a").ljust(4096), None, "capsule"),
    ],
)
def test_flash_that_breaks_a_rule_is_refused(code: bytes, variables: bytes | None, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        validate_flash(firmware(code), firmware(variables) if variables else None)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_swapped_files_are_called_swapped() -> None:
    with pytest.raises(SpecError, match="swap the two files"):
        validate_flash(firmware(VARS_4M), firmware(CODE_4M))


def test_store_without_header_is_refused() -> None:
    store = bytearray(VARS_4M)
    store[72:88] = bytes(16)
    with pytest.raises(ImageError, match="no store header"):
        validate_flash(firmware(CODE_4M), firmware(bytes(store)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (CODE_4M, "not a multiple of 64 KiB"),
        (VARS_2M, "variable store"),
        (b"\xff" * (16 << 20), "at most 8388608 fit"),
        (bytes(65536), "no reset vector"),
        (b"\x7fELF".ljust(65536, b"\0"), "ELF"),
    ],
)
def test_bios_that_breaks_a_rule_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        validate_bios(firmware(data))
    assert caught.value.remedy


def test_bios_of_64_kib_is_taken() -> None:
    validate_bios(firmware(ImageBuilder(65536).build()))


def test_build_for_smm_is_refused() -> None:
    head = lzma_section(bytes(200_000) + guids.SMM_ACCESS_PEIM + bytes(100_000))
    data = ImageBuilder(0x37C000, volume=True).piece(0x300000, head).build()
    with pytest.raises(ImageError, match="SMM_REQUIRE"):
        validate_flash(firmware(data))


def test_damaged_lzma_stream_does_not_count_as_smm() -> None:
    section = bytearray(lzma_section(bytes(300_000)))
    section[40:60] = b"\xff" * 20
    assert not requires_smm(bytes(section))
    assert not requires_smm(bytes(section[:30]))


def test_every_secboot_image_and_no_other_needs_smm() -> None:
    images = [path for path in find_images() if "CODE" in path.name]
    if not images:
        pytest.skip("no OVMF CODE image installed")
    for path in images:
        assert requires_smm(path.read_bytes()) == ("secboot" in path.name), path


def test_real_files_in_the_wrong_place_are_refused() -> None:
    code, variables = require_image("OVMF_CODE_4M.fd"), require_image("OVMF_VARS_4M.fd")
    small = require_image("OVMF_VARS.fd")
    for pair in ((variables, code), (code, small), (code, code)):
        with pytest.raises(CasemateError):
            validate_flash(FirmwareImage.load(pair[0]), FirmwareImage.load(pair[1]))
