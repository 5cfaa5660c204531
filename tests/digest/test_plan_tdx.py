"""MRTD against a recipe of the test's own (self-consistent: no other implementation installs), and the TD HOB."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from support.firmware_images import find_images, require_image

from casemate.address import FOUR_GIB, Gpa, GuestRange
from casemate.digest.mrtd import predict_mrtd
from casemate.digest.plan_json import plan_from_json, plan_to_json
from casemate.digest.plan_tdx import AddOrder, plan_tdx
from casemate.digest.td_hob import build_td_hob
from casemate.digest.trace import trace_digest
from casemate.errors import ImageError, SpecError
from casemate.firmware.image import FirmwareImage
from casemate.testing.images import ImageBuilder

MIB = 1 << 20
SIZE = 128 << 10
BFV = (0x4000, SIZE - 0x4000, FOUR_GIB - SIZE + 0x4000, SIZE - 0x4000, 0, 1)
CFV = (0, 0x4000, FOUR_GIB - SIZE, 0x4000, 1, 0)
HOB = (0, 0, 0x809000, 0x2000, 2, 0)
MEMORY = (0, 0, 0x810000, 0x10000, 3, 0)
INTERLEAVED = (
    "4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47"
)
TWO_PASS = "acccbcc870a381adab0d3919d90a7f268ac3b0364771f202ed4bb4e892d045b33db3b32e6924cba830a724eed443f7e1"


def image(*sections: tuple[int, int, int, int, int, int]) -> FirmwareImage:
    built = ImageBuilder(SIZE).tdx_metadata(sections or (BFV, CFV, MEMORY, HOB))
    return FirmwareImage.from_bytes(built.build(), "x.fd")


def recipe(firmware: FirmwareImage, *, two_pass: bool) -> bytes:
    """MRTD by the calls that a VMM makes, one after the other, from the metadata of the file alone."""
    assert firmware.tdvf is not None
    calls: list[bytes] = []

    def add(gpa: int) -> None:
        calls.append(struct.pack("<16sQ104x", b"MEM.PAGE.ADD", gpa))

    def extend(gpa: int, contents: bytes) -> None:
        for chunk in range(16):
            calls.append(struct.pack("<16sQ104x", b"MR.EXTEND", gpa + 256 * chunk))
            calls.append(contents[256 * chunk : 256 * chunk + 256])

    for section in firmware.tdvf.sections:
        held = firmware.data[section.data_offset : section.data_offset + section.raw_size]
        pages = [
            (section.base + at, held[at : at + 4096].ljust(4096, b"\0"))
            for at in range(0, section.size, 4096)
        ]
        for gpa, contents in pages:
            add(gpa)
            if section.attributes & 1 and not two_pass:
                extend(gpa, contents)
        if section.attributes & 1 and two_pass:
            for gpa, contents in pages:
                extend(gpa, contents)
    return hashlib.sha384(b"".join(calls)).digest()


def suitable_images() -> list[Path]:
    """One file of each content that a TD can be built from."""
    found: dict[bytes, Path] = {}
    for path in find_images():
        candidate = FirmwareImage.load(path)
        if candidate.size.bit_count() == 1 and candidate.guided_table and candidate.tdvf:
            found.setdefault(candidate.data, path)
    return list(found.values())


IMAGES = suitable_images()


@pytest.mark.skipif(not IMAGES, reason="no OVMF for TDX installed: unpack ovmf into $CASEMATE_FIRMWARE")
@pytest.mark.parametrize("path", IMAGES, ids=lambda path: "-".join(path.parts[-5:]))
@pytest.mark.parametrize("order", AddOrder)
def test_mrtd_of_real_images_is_that_of_the_recipe(path: Path, order: AddOrder) -> None:
    firmware = FirmwareImage.load(path)
    expected = recipe(firmware, two_pass=order is AddOrder.TWO_PASS)
    assert predict_mrtd(plan_tdx(firmware, order)) == expected


def test_debian_12_mrtd_is_the_known_one() -> None:
    firmware = FirmwareImage.load(require_image("OVMF.fd", "bookworm"))
    assert predict_mrtd(plan_tdx(firmware)).hex() == INTERLEAVED
    assert predict_mrtd(plan_tdx(firmware, AddOrder.TWO_PASS)).hex() == TWO_PASS


@pytest.mark.parametrize("order", AddOrder)
def test_section_larger_than_its_contents_is_filled_with_zeros(order: AddOrder) -> None:
    firmware = image((*BFV[:1], 0x1100, *BFV[2:]), HOB)
    assert predict_mrtd(plan_tdx(firmware, order)) == recipe(firmware, two_pass=order is AddOrder.TWO_PASS)


def test_variables_and_hob_enter_by_address_only() -> None:
    changed = bytearray(image().data)
    changed[0x100] ^= 1
    other = FirmwareImage.from_bytes(bytes(changed), "y.fd")
    assert predict_mrtd(plan_tdx(other)) == predict_mrtd(plan_tdx(image()))
    moved = image(BFV, CFV, MEMORY, (0, 0, 0x80A000, 0x2000, 2, 0))
    assert predict_mrtd(plan_tdx(moved)) != predict_mrtd(plan_tdx(image()))


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", float("inf")), ("size", 1 << 70), ("size", 0), ("gpa", f"{(1 << 52) - 1:#x}")],
)
def test_plan_with_pages_that_no_guest_has_is_refused_by_its_name(name: str, value: object) -> None:
    document = json.loads(plan_to_json(plan_tdx(image())))
    document["steps"][0][name] = value
    with pytest.raises(SpecError, match=r"launch\.json: this is no launch plan"):
        plan_from_json(json.dumps(document), "launch.json")


def test_plan_of_more_pages_than_any_guest_measures_is_refused() -> None:
    document = json.loads(plan_to_json(plan_tdx(image())))
    document["steps"] = [document["steps"][0] | {"gpa": "0x0", "size": 3 << 30}] * 2
    with pytest.raises(SpecError, match="more than 4 GiB"):
        plan_from_json(json.dumps(document))


def test_plan_survives_json_and_the_trace_ends_in_mrtd() -> None:
    for order, kinds in (
        (AddOrder.INTERLEAVED, ["add-extend", "add", "add", "add"]),
        (AddOrder.TWO_PASS, ["add", "extend", "add", "add", "add"]),
    ):
        plan = plan_tdx(image(), order)
        assert plan_from_json(plan_to_json(plan)) == plan
        trace = trace_digest(plan)
        assert [step.kind for step in trace] == kinds
        assert trace[-1].running == predict_mrtd(plan)


@pytest.mark.parametrize(
    ("firmware", "message"),
    [
        (FirmwareImage.from_bytes(ImageBuilder().reset_block(1).build(), "x.fd"), "no TDX metadata"),
        (image(BFV, CFV), "no place for the TD HOB"),
        (image((SIZE, SIZE, 0x1000, SIZE, 0, 1), HOB), "BFV ends at 0x40000 of a file of 0x20000"),
        (image(BFV, HOB, (0, 0, 0x80A000, 0x1000, 3, 0)), "overlap at 0x80a000"),
    ],
)
def test_image_that_no_td_can_be_built_from_is_refused(firmware: FirmwareImage, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        plan_tdx(firmware)
    assert caught.value.remedy


def test_bare_code_file_is_refused_with_the_way_out() -> None:
    with pytest.raises(ImageError, match="of a file of 0x1e0000") as caught:
        plan_tdx(FirmwareImage.load(require_image("OVMF_CODE.fd", "bookworm")))
    assert "OVMF.fd" in caught.value.remedy


RAM = (GuestRange(Gpa(0), 64 * MIB), GuestRange(Gpa(FOUR_GIB), 32 * MIB))


def hob(firmware: FirmwareImage, ram: tuple[GuestRange, ...] = RAM) -> bytes:
    assert firmware.tdvf is not None
    return build_td_hob(firmware, firmware.tdvf, ram)


def parse(data: bytes) -> list[tuple[int, Any]]:
    """All HOBs as (type, body)."""
    found, at = [], 0
    while True:
        kind, length, reserved = struct.unpack_from("<HHI", data, at)
        assert reserved == 0
        assert length % 8 == 0
        found.append((kind, data[at + 8 : at + length]))
        at += length
        if kind == 0xFFFF:
            assert at == len(data)
            return found


def test_hob_tells_all_memory_once_and_its_own_end() -> None:
    data = hob(image())
    (first, handoff), *resources, (last, _) = parse(data)
    assert (first, last) == (1, 0xFFFF)
    assert struct.unpack("<II4QQ", handoff) == (9, 0, 0, 0, 0, 0, 0x809000 + len(data))
    pieces = [struct.unpack("<16sIIQQ", body) for _, body in resources]
    assert all(owner == bytes(16) and attributes == 7 for owner, _, attributes, _, _ in pieces)
    assert [(start, size, kind) for _, kind, _, start, size in pieces] == [
        (0, 0x809000, 7),
        (0x809000, 0x2000, 0),
        (0x80B000, 0x5000, 7),
        (0x810000, 0x10000, 0),
        (0x820000, 64 * MIB - 0x820000, 7),
        (FOUR_GIB, 32 * MIB, 7),
    ]


def test_section_outside_of_ram_and_a_list_that_is_too_long_are_refused() -> None:
    with pytest.raises(SpecError, match="lies in no RAM"):
        hob(image(), (GuestRange(Gpa(0), 8 * MIB),))
    pieces = tuple(GuestRange(Gpa(index * 2 * MIB), MIB) for index in range(4, 400))
    with pytest.raises(SpecError, match="TD HOB takes"):
        hob(image(), (GuestRange(Gpa(0), 8 * MIB), *pieces, GuestRange(Gpa(8 * MIB), 2 * MIB)))
