"""The checker of variable stores: what firmware sees, and that nothing else becomes a variable."""

from __future__ import annotations

import pytest

from casemate.advise.store_check import StoreCheck, check_store, repair_store, rewrite_store
from casemate.errors import ImageError
from casemate.firmware import guids
from casemate.firmware.variables import VENDORS, Variable, next_offset
from casemate.firmware.varstore import STORE_OFFSET, StoreLayout, build_volume

FIRST_RECORD = 0x64
VARIABLES = tuple(
    Variable(f"Variable{number}", VENDORS["global"], 7, bytes([number]) * (10 + number))
    for number in range(5)
)
NEW = Variable("Variable1", VENDORS["global"], 7, b"the newer value")


def store(*records: Variable, size: int = 0x20000, authenticated: bool = True) -> bytearray:
    return bytearray(build_volume(StoreLayout(size), records or VARIABLES, authenticated=authenticated))


def record_at(data: bytearray, number: int) -> int:
    """Where the record of that number begins."""
    offset = FIRST_RECORD
    for _ in range(number):
        following = next_offset(bytes(data[STORE_OFFSET:]), offset - STORE_OFFSET, authenticated=True)
        offset = STORE_OFFSET + following
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


def test_duplicate_is_an_error_and_the_first_counts_as_it_does_for_firmware() -> None:
    checked = check(store(*VARIABLES, NEW))
    assert "is there twice" in words(checked)
    assert checked.variables == VARIABLES


@pytest.mark.parametrize(
    ("at", "value", "message", "seen"),
    [
        (0, 0x00, "the list of records ends here", (0, 1)),
        (2, 0x00, "state 0x00", (0, 1, 3, 4)),
        (36, 0x03, "no name has 3 bytes", (0, 1)),
        (38, 0x7F, "run over the end", (0, 1)),
        (36, 0x12, "name does not end", (0, 1, 3, 4)),
        (40, 0x20, "the list of records ends here", (0, 1, 2)),
        (40, 0x00, "the list of records ends here", (0, 1, 2)),
    ],
)
def test_damaged_record_hides_what_it_hides_from_firmware(
    at: int, value: int, message: str, seen: tuple[int, ...]
) -> None:
    data = store()
    data[record_at(data, 2) + at] = value
    checked = check(data)
    assert message in words(checked)
    assert not checked.is_healthy
    assert [v.name for v in checked.variables] == [VARIABLES[number].name for number in seen]
    repaired = check(repair_store(bytes(data), checked))
    assert (repaired.variables, repaired.findings) == (checked.variables, ())


@pytest.mark.parametrize(("at", "value"), [(0, 0x00), (36, 0x03), (38, 0x7F), (40, 0x00)])
def test_ordinary_variables_behind_the_damage_are_named_and_salvaged_when_asked_for(
    at: int, value: int
) -> None:
    data = store()
    data[record_at(data, 2) + at] = value
    checked = check(data)
    behind = {VARIABLES[3], VARIABLES[4]}
    assert {stray.variable for stray in checked.strays} == behind
    salvaged = check(repair_store(bytes(data), checked, salvage=True))
    assert salvaged.findings == ()
    assert set(salvaged.variables) == set(checked.variables) | behind


@pytest.mark.parametrize(
    "precious",
    [
        Variable("db", VENDORS["security-database"], 0x27, b"signed"),
        Variable("db", VENDORS["security-database"], 7, b"claims to be ordinary"),
        Variable("PK", VENDORS["global"], 7, b"the name alone"),
        Variable("MokList", guids.guid("605dab50-e046-4300-abb6-3dd810dd8b23"), 7, b"shim's"),
        Variable("SecureBootEnable", guids.guid("f0a30bc7-af08-4556-99c4-001009c93a44"), 3, b"\1"),
        Variable("Anything", VENDORS["shell"], 3, b"for boot alone"),
        Variable("Anything", VENDORS["shell"], 0x17, b"signed the old way"),
    ],
)
def test_what_is_trusted_is_never_salvaged(precious: Variable) -> None:
    data = store(VARIABLES[0], precious, VARIABLES[1])
    data[FIRST_RECORD] = 0
    checked = check(data)
    assert checked.variables == checked.whole == ()
    assert [stray.can_be_salvaged for stray in checked.strays] == [False, True]
    assert check(repair_store(bytes(data), checked, salvage=True)).variables == (VARIABLES[1],)


FORGED = Variable("db", VENDORS["security-database"], 0x27, b"ATTACKER-CERT" * 3).encode(authenticated=True)
FORGED_ORDINARY = Variable("BootOrder", VENDORS["global"], 7, b"\1\0").encode(authenticated=True)


@pytest.mark.parametrize("forged", [FORGED, FORGED * 5, FORGED_ORDINARY, FORGED_ORDINARY + FORGED])
@pytest.mark.parametrize("lead", [b"", b"\0\0", b"\0" * 4, b"x" * 61])
def test_record_inside_of_a_value_is_a_value(forged: bytes, lead: bytes) -> None:
    evil = Variable("evil", VENDORS["shell"], 7, lead + forged)
    data = bytes(store(VARIABLES[0], evil, VARIABLES[1]))
    checked = check(data)
    assert (checked.variables, checked.findings, checked.strays) == (
        (VARIABLES[0], evil, VARIABLES[1]),
        (),
        (),
    )


@pytest.mark.parametrize("deleted", [0x3E, 0x3D, 0x3C, 0x7F])
def test_record_inside_of_a_deleted_value_is_none(deleted: int) -> None:
    data = store(VARIABLES[0], Variable("evil", VENDORS["shell"], 7, FORGED_ORDINARY * 3), VARIABLES[1])
    data[record_at(data, 1) + 2] = deleted
    assert {v.name for v in check(data).variables} - {"evil"} == {"Variable0", "Variable1"}
    assert check(data).strays == ()


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0), (1, 0xAA), (2, 0xFF), (2, 0x00), (36, 0x02), (36, 0x40), (32, 0xFF)]
)
def test_record_inside_of_a_damaged_value_is_not_salvaged(at: int, value: int) -> None:
    data = store(VARIABLES[0], Variable("evil", VENDORS["shell"], 7, b"\0\0" + FORGED_ORDINARY), VARIABLES[1])
    data[record_at(data, 1) + at] = value
    checked = check(data)
    repaired = check(repair_store(bytes(data), checked, salvage=True))
    assert {v.name for v in repaired.variables} <= {"Variable0", "evil", "Variable1"}, checked


def test_record_that_claims_more_than_there_is_hides_nothing_from_salvage_but_keeps_what_is_trusted_out() -> (
    None
):
    data = store(VARIABLES[0], Variable("evil", VENDORS["shell"], 7, b"\0\0" + FORGED), VARIABLES[1])
    data[record_at(data, 1) + 43] = 0x7F
    checked = check(data)
    assert check(repair_store(bytes(data), checked)).variables == (VARIABLES[0],)
    assert check(repair_store(bytes(data), checked, salvage=True)).variables == (VARIABLES[0], VARIABLES[1])


@pytest.mark.parametrize(
    ("offset", "message"),
    [(0x20, "header of the volume"), (0x48, "its GUID"), (0x58, "its size"), (0x5D, "its state")],
)
def test_damaged_headers_are_made_anew(offset: int, message: str) -> None:
    data = store()
    data[offset] ^= 0x81
    checked = check(data)
    assert message in words(checked)
    assert checked.variables == ()
    assert checked.whole == VARIABLES
    assert repair_store(bytes(data), checked) == store()


def full(size: int, live: int) -> bytearray:
    """A store whose last free byte is taken: ``live`` variables of 1000 bytes, and deleted ones."""
    count = (StoreLayout(size).end - FIRST_RECORD) // 1100
    values = [Variable(f"V{number:04}", VENDORS["shell"], 7, bytes(1000)) for number in range(count)]
    data = store(*values, size=size)
    length = len(values[0].encode(authenticated=True))
    for number in range(live, count):
        data[FIRST_RECORD + number * length + 2] = 0x3C
    return data


@pytest.mark.parametrize("size", [0x20000, 0x84000])
def test_store_that_slows_the_boot_is_noted_and_compact_is_not(size: int) -> None:
    data = full(size, 10)
    checked = check(data)
    assert checked.is_healthy
    assert "rewrites the whole store at the next boot" in checked.findings[0].effect
    assert checked.live + checked.reclaimable + checked.free == checked.capacity
    assert checked.live == 10 * len(checked.variables[0].encode(authenticated=True))
    compact = check(rewrite_store(bytes(data), checked, checked.variables))
    assert (compact.findings, compact.reclaimable) == ((), 0)
    assert compact.variables == checked.variables


@pytest.mark.parametrize("size", [0x20000, 0x84000])
def test_store_whose_variables_leave_too_little_is_slow_at_every_boot(size: int) -> None:
    checked = check(full(size, 10_000))
    assert "at every boot" in checked.findings[0].effect
    assert checked.reclaimable == 0


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
    assert checked.whole == VARIABLES
    assert checked.variables == (() if torn_from else VARIABLES)
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
