"""The checker of variable stores: each kind of damage is found, explained, and repaired with nothing whole lost."""

from __future__ import annotations

import pytest

from casemate.advise.store_check import StoreCheck, check_store, repair_store
from casemate.errors import ImageError
from casemate.firmware.variables import VENDORS, Variable
from casemate.firmware.varstore import StoreLayout, build_volume

FIRST_RECORD = 0x64
VARIABLES = tuple(
    Variable(f"Variable{number}", VENDORS["global"], 7, bytes([number]) * (10 + number))
    for number in range(5)
)
NEW = Variable("Variable1", VENDORS["global"], 7, b"the newer value")


def store(*records: Variable, size: int = 0x20000, authenticated: bool = True) -> bytearray:
    return bytearray(build_volume(StoreLayout(size), records or VARIABLES, authenticated=authenticated))


def record_at(data: bytearray, number: int) -> int:
    """Where the record of ``VARIABLES[number]`` begins."""
    offset = FIRST_RECORD
    for variable in VARIABLES[:number]:
        offset += len(variable.encode(authenticated=True))
    assert data[offset : offset + 2] == b"\xaa\x55"
    return offset


def check(data: bytes | bytearray) -> StoreCheck:
    return check_store(bytes(data), "VARS.fd")


def words(checked: StoreCheck) -> str:
    return " / ".join(finding.what for finding in checked.findings)


@pytest.mark.parametrize("size", [0x20000, 0x84000])
@pytest.mark.parametrize("authenticated", [True, False])
def test_healthy_store_has_no_findings(size: int, authenticated: bool) -> None:
    data = store(size=size, authenticated=authenticated)
    checked = check(data)
    assert (checked.variables, checked.findings) == (VARIABLES, ())
    assert checked.authenticated is authenticated
    assert repair_store(bytes(data), checked) == data


def damage_state(data: bytearray, number: int, state: int) -> None:
    data[record_at(data, number) + 2] = state


def test_interrupted_header_is_explained_and_the_records_behind_it_are_kept() -> None:
    data = store(*VARIABLES[:2])
    end = record_at(data, 1) + len(VARIABLES[1].encode(authenticated=True))
    data[end : end + 7] = NEW.encode(authenticated=True)[:2] + b"\xff" * 5
    behind = VARIABLES[3].encode(authenticated=True)
    data[end + 60 : end + 60 + len(behind)] = behind
    checked = check(data)
    assert "cut off within its header (state 0xff)" in words(checked)
    assert "stop at this for ever" in checked.findings[0].effect
    assert not checked.is_healthy
    assert checked.variables == (*VARIABLES[:2], VARIABLES[3])
    assert check(repair_store(bytes(data), checked)).findings == ()


def test_interrupted_data_is_a_note() -> None:
    data = store()
    damage_state(data, 4, 0x7F)
    checked = check(data)
    assert "within its name or data" in words(checked)
    assert checked.is_healthy
    assert checked.variables == VARIABLES[:4]


def test_interrupted_change_keeps_the_old_value_until_the_new_one_is_whole() -> None:
    data = store()
    damage_state(data, 1, 0x3E)
    assert VARIABLES[1] in check(data).variables
    both = store(*VARIABLES, NEW)
    damage_state(both, 1, 0x3E)
    checked = check(both)
    assert NEW in checked.variables
    assert VARIABLES[1] not in checked.variables
    assert checked.is_healthy


def test_duplicate_is_an_error_and_the_newer_is_kept() -> None:
    checked = check(store(*VARIABLES, NEW))
    assert "is there twice" in words(checked)
    assert NEW in checked.variables
    assert len(checked.variables) == len(VARIABLES)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (2, 0x00, "state 0x00"),
        (36, 0x03, "no name has 3 bytes"),
        (38, 0x7F, "run over the end"),
        (36, 0x12, "name does not end"),
        (41, 0x01, "take in the record at"),
        (40, 0x00, "not erased"),
    ],
)
def test_damaged_record_costs_only_itself(at: int, value: int, message: str) -> None:
    data = store()
    data[record_at(data, 2) + at] = value
    checked = check(data)
    assert message in words(checked)
    assert set(checked.variables) >= {*VARIABLES[:2], *VARIABLES[3:]}
    assert check(repair_store(bytes(data), checked)).findings == ()


@pytest.mark.parametrize(
    ("offset", "message"),
    [(0x20, "header of the volume"), (0x48, "its GUID"), (0x58, "its size"), (0x5D, "its state")],
)
def test_damaged_headers_are_made_anew(offset: int, message: str) -> None:
    data = store()
    data[offset] ^= 0x81
    checked = check(data)
    assert message in words(checked)
    assert repair_store(bytes(data), checked) == store()


def test_truncated_store_gets_its_end_back() -> None:
    data = store()[:0x18000]
    checked = check(data)
    assert "the end is missing" in words(checked)
    assert repair_store(bytes(data), checked) == store()


def test_what_follows_the_volume_stays() -> None:
    data = bytes(store()) + b"code" * 1000
    assert repair_store(data, check(data)) == data


def pending_write(state: int, record: int) -> bytes:
    """A write of the whole store, as firmware's reclaim records it."""
    header = bytes((state, 0xFF, 0xFF, 0xFF)) + b"id of the caller" + b"\xff" * 4 + bytes((1, *bytes(15)))
    numbers = (0, 0x48, 0xDFB8, -0x10000)
    return (
        header
        + bytes((record,))
        + b"\xff" * 7
        + b"".join(n.to_bytes(8, "little", signed=True) for n in numbers)
    )


@pytest.mark.parametrize(
    ("record", "torn_from", "message", "healthy"),
    [
        (0xFF, None, "before the spare block was whole", True),
        (0xFD, 0x40, "the spare block has all", False),
        (0xF9, None, "", True),
    ],
)
def test_fault_tolerant_write_is_judged_by_its_journal(
    record: int, torn_from: int | None, message: str, healthy: bool
) -> None:
    data = store()
    data[0x10000:0x1E000] = data[:0xE000]
    data[0xF020 : 0xF020 + 80] = pending_write(0xFC, record)
    if torn_from is not None:
        data[torn_from:0xE000] = b"\xff" * (0xE000 - torn_from)
    checked = check(data)
    assert message in words(checked)
    assert checked.is_healthy is healthy
    assert checked.variables == VARIABLES
    assert repair_store(bytes(data), checked) == store()


def test_unusable_work_block_is_a_note() -> None:
    data = store()
    data[0xF010] ^= 1
    checked = check(data)
    assert "work block cannot be used: its checksum" in words(checked)
    assert checked.is_healthy


@pytest.mark.parametrize("data", [b"", b"x", bytes(0x20000), b"\xff" * 0x84000, b"\x7fELF" * 0x8000])
def test_file_that_is_no_store_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="no variable store"):
        check(data)
