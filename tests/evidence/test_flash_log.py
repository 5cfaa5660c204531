"""What is kept of flash commands: counts, blocks, variables, and time, all of it bounded."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.events import FlashAction, FlashCommand
from casemate.evidence.activity import Activity
from casemate.evidence.flash_log import FlashLog
from casemate.firmware.variables import VENDORS, Variable
from casemate.firmware.varstore import HEADER_SIZE, SIZES, STORE_OFFSET, StoreLayout, build_volume

SIZE = 0x20000
RECORDS = STORE_OFFSET + HEADER_SIZE


def variable(name: str, size: int) -> Variable:
    return Variable(name, VENDORS["global"], 7, bytes(size))


def store(*variables: Variable) -> bytearray:
    return bytearray(build_volume(StoreLayout(SIZE), variables, authenticated=True))


class Guest:
    """A unit, and a guest that programs it byte by byte."""

    def __init__(self, contents: bytearray) -> None:
        self.contents = contents
        self.log = FlashLog(memoryview(contents))

    def tell(self, action: FlashAction, offset: int, size: int = 1) -> None:
        self.log.add(FlashCommand(1, action, offset, size), 0.5)

    def write(self, offset: int, data: bytes) -> None:
        for at, byte in enumerate(data, offset):
            self.tell(FlashAction.PROGRAM, at)
            self.contents[at] = byte

    def erase(self, block: int) -> None:
        self.tell(FlashAction.ERASE, block << 12, 0x1000)
        self.contents[block << 12 : (block + 1) << 12] = b"\xff" * 0x1000

    def bytes_by_name(self) -> dict[str, int]:
        found = self.log.to_json()
        other: dict[str, int] = found["other"]
        return {item["name"]: item["bytes"] for item in found["variables"]} | other


def test_programs_belong_to_the_variables_that_they_make() -> None:
    guest = Guest(store())
    first, second = (
        variable(*what).encode(authenticated=True) for what in (("Timeout", 2), ("Boot0000", 90))
    )
    guest.write(RECORDS, first)
    guest.write(RECORDS + len(first), second)
    assert guest.bytes_by_name() == {"Timeout": len(first), "Boot0000": len(second)}
    found = guest.log.to_json()
    assert found["programs"] == len(first) + len(second)
    assert found["variables"][0]["vendor"] == "global"
    assert found["blocks"] == [{"offset": 0, "programs": found["programs"], "erases": 0}]


def test_variable_that_is_erased_later_is_still_named() -> None:
    guest = Guest(store(variable("Old", 4)))
    end = RECORDS + len(variable("Old", 4).encode(authenticated=True))
    guest.write(end, variable("Gone", 4).encode(authenticated=True))
    guest.erase(0)
    guest.write(0, bytes(store(variable("Old", 4))[:0x1000]))
    named = guest.bytes_by_name()
    assert named["Gone"] == len(variable("Gone", 4).encode(authenticated=True))
    assert named["store header"] == RECORDS
    assert guest.log.to_json()["erases"] == 1


def test_work_and_spare_blocks_are_told_apart() -> None:
    guest, layout = Guest(store()), StoreLayout(SIZE)
    guest.write(layout.work + 8, b"abc")
    guest.write(layout.spare, b"spare")
    guest.write(layout.end - 1, b"xy")
    assert guest.bytes_by_name() == {
        "fault-tolerant write: spare block": 5,
        "fault-tolerant write: work block": 3,
        "free space": 1,
        "event log": 1,
    }


@pytest.mark.parametrize("contents", [bytes(SIZE), b"\xff" * SIZE, Random(1).randbytes(SIZE)])
def test_unit_without_a_store_is_counted_all_the_same(contents: bytes) -> None:
    guest = Guest(bytearray(contents))
    guest.write(0x1234, b"abcd")
    assert guest.bytes_by_name() == {"outside of a variable store": 4}


def test_probes_and_locks_are_counted() -> None:
    guest = Guest(store())
    for action in (FlashAction.PROBE, FlashAction.PROBE, FlashAction.LOCK):
        guest.tell(action, 0x10)
    found = guest.log.to_json()
    assert (found["probes"], found["locks"], found["programs"]) == (2, 1, 0)
    assert found["activity"] == [{"at": 0.5, "seconds": 1 / 128, "count": 3}]


def test_memory_stays_bounded_whatever_the_guest_programs() -> None:
    guest, rng = Guest(store()), Random(7)
    for _ in range(30_000):
        if rng.random() < 0.1:
            guest.erase(rng.randrange(SIZE >> 12))
        guest.write(rng.randrange(SIZE), b"\x00")
    found = guest.log.to_json()
    assert found["programs"] == 30_000
    assert sum(guest.bytes_by_name().values()) == 30_000
    assert len(guest.log._runs) + len(guest.log._bytes) < 2000
    assert "not looked up" in found["other"]


@given(st.binary(max_size=0x3000), st.sampled_from([True, False]), st.sampled_from(sorted(SIZES)))
def test_no_damage_of_a_store_stops_the_log(noise: bytes, authenticated: bool, size: int) -> None:
    contents = bytearray(build_volume(StoreLayout(size), [], authenticated=authenticated))
    contents[RECORDS : RECORDS + len(noise)] = noise
    guest = Guest(contents)
    guest.write(RECORDS, b"abc")
    assert sum(guest.bytes_by_name().values()) == 3


@given(st.lists(st.floats(0, 5000), max_size=200))
def test_activity_keeps_every_count_and_when(times: list[float]) -> None:
    activity = Activity()
    for at in times:
        activity.add(at)
    found = activity.to_json()
    assert sum(item["count"] for item in found) == len(times)
    assert len(activity.counts) == 512
    for at in times:
        assert any(item["at"] <= at < item["at"] + item["seconds"] for item in found)
