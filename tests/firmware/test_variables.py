"""Records of a variable store, their JSON, and volumes made of them: what is written is what is read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import ImageError, SpecError
from casemate.firmware.fault_tolerant_write import build_work_block, parse_work_block
from casemate.firmware.variables import RecordFault, Variable, header_size, parse_record, vendor_name
from casemate.firmware.variables_json import variables_from_json, variables_to_json
from casemate.firmware.varstore import StoreLayout, build_volume

VARIABLE = Variable("Boot0000", bytes(range(16)), 7, b"data")
variables = st.builds(
    Variable,
    name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20),
    guid=st.binary(min_size=16, max_size=16),
    attributes=st.integers(0, 0x7F),
    data=st.binary(max_size=60),
    stamp=st.binary(min_size=16, max_size=16),
    replay_count=st.just(0),
    key_index=st.just(0),
)


@given(variables)
@settings(derandomize=True, deadline=None)
def test_authenticated_record_is_read_as_written(variable: Variable) -> None:
    encoded = variable.encode(authenticated=True)
    record = parse_record(encoded, 0, authenticated=True)
    assert record.variable == variable
    assert len(encoded) % 4 == 0
    assert 0 <= len(encoded) - record.end < 4


@given(variables)
@settings(derandomize=True, deadline=None)
def test_plain_record_is_read_as_written_but_for_its_stamp(variable: Variable) -> None:
    record = parse_record(variable.encode(authenticated=False), 0, authenticated=False)
    assert record.variable == variable._replace(stamp=bytes(16))


@given(st.lists(variables, max_size=5))
@settings(derandomize=True, deadline=None)
def test_json_carries_everything(values: list[Variable]) -> None:
    assert variables_from_json(variables_to_json(values), "x.json") == values


@given(st.binary(max_size=200))
@settings(derandomize=True, deadline=None)
def test_any_bytes_are_a_record_or_a_fault(data: bytes) -> None:
    for authenticated in (True, False):
        try:
            record = parse_record(b"\xaa\x55\x3f" + data, 0, authenticated=authenticated)
        except RecordFault:
            continue
        assert record.end <= len(data) + 3


def test_headers_have_the_sizes_of_edk2() -> None:
    assert (header_size(True), header_size(False)) == (60, 32)


def test_known_vendors_have_names() -> None:
    assert vendor_name(bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")) == "global"
    assert vendor_name(bytes(16)) == "00000000-0000-0000-0000-000000000000"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"variables": [{}]}',
        '{"variables": [{"name": "", "guid": "", "attr": 1, "data": ""}]}',
    ],
)
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match="no document of variables"):
        variables_from_json(text, "x.json")


def test_volume_that_is_too_small_is_refused() -> None:
    with pytest.raises(SpecError, match="the store ends at 0xe000"):
        build_volume(StoreLayout(0x20000), [VARIABLE._replace(data=bytes(0xE000))], authenticated=True)


def test_work_block_has_the_checksum_that_firmware_wrote() -> None:
    block = build_work_block(0x1000)
    assert block[16:20] == bytes.fromhex("2caf2c64")  # of a block that OVMF 2022.11 had written
    assert parse_work_block(block.ljust(0x1000, b"\xff"), 0x1000).fault is None


@given(st.binary(max_size=300))
@settings(derandomize=True, deadline=None)
def test_any_journal_is_read_or_has_a_fault(journal: bytes) -> None:
    block = (build_work_block(0x1000) + journal).ljust(0x1000, b"\xff")
    work = parse_work_block(block, 0x1000)
    assert work.fault is None or work.pending is None
