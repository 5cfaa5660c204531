"""Whose the byte at an offset of an image is (real Debian images, and damage)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.firmware_images import require_image

from casemate.evidence.owner import owner_of
from casemate.firmware.variables import VENDORS, Variable
from casemate.firmware.varstore import StoreLayout, build_volume


def code() -> bytes:
    return require_image("OVMF_CODE.fd", "bookworm").read_bytes()


@pytest.mark.parametrize(
    ("offset", "owner"),
    [
        (0x10, "firmware volume at 0x0, its header"),
        (0x1000, "firmware volume at 0x0, file 9e21fd93-9c72-4c15-8c4b-e77f1db2d792 (volume image)"),
        (0x1AC100, "firmware volume at 0x1ac000, file SecMain (SEC core)"),
        (0x1C0000, "firmware volume at 0x1ac000, padding"),
        (0x1DFFF0, "firmware volume at 0x1ac000, file 1ba0062e-c779-4582-8566-336ae8f78f09 (raw)"),
    ],
)
def test_owner_in_a_stock_image(offset: int, owner: str) -> None:
    assert owner_of(code(), offset) == owner


def test_owner_in_a_variable_store() -> None:
    data = build_volume(
        StoreLayout(0x20000), [Variable("Boot0000", VENDORS["global"], 7, b"x")], authenticated=True
    )
    assert owner_of(data, 0x64) == "variable store at 0x0, variable Boot0000"
    assert owner_of(data, 0xC000) == "variable store at 0x0, free space"
    assert owner_of(bytes(0x1000), 5) == "in no firmware volume"


@settings(max_examples=50)
@given(st.integers(0, 0x3FF), st.binary(min_size=1, max_size=64), st.integers(0, 0x1DFFFF))
def test_damage_never_stops_the_answer(at: int, noise: bytes, offset: int) -> None:
    data = bytearray(code())
    data[at : at + len(noise)] = noise
    assert owner_of(bytes(data), offset)
