from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.confidential_launches import (
    DEBUG_SWAP,
    UNIT0,
    UNIT1,
    UNIT1_SIZE,
    Launch,
    flash_slots,
    readonly_bytes,
    sev_es,
    write_guest,
    write_variables,
)

from casemate.devices.flash import spec
from casemate.guests.actions import tell
from casemate.guests.entry import IMAGE_SIZE
from casemate.machine.machine import Machine
from casemate.memory.flash_memory import FlashMode

SIZES = {0: IMAGE_SIZE, 1: UNIT1_SIZE}
BASES = {0: UNIT0, 1: UNIT1}

commands = st.sampled_from(
    [
        spec.READ_ARRAY, spec.READ_ARRAY_AMD, spec.READ_ARRAY_ZERO, spec.CLEAR_STATUS, spec.READ_STATUS,
        spec.READ_IDENT, spec.PROGRAM, spec.PROGRAM_ALTERNATE, spec.ERASE, spec.LOCK_SETUP, spec.QUERY,
        spec.BUFFERED_PROGRAM, spec.CONFIRM, spec.LOCK, 0x02,
    ]
)  # fmt: skip
requests = st.tuples(
    st.sampled_from([0, 1]),
    st.integers(0, UNIT1_SIZE - 8),
    st.sampled_from([1, 2, 4, 8]),
    commands | st.integers(0, 255),
)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A launched SEV-ES guest whose flash is protected by mprotect; its requests (GHCB) come to the bus."""
    with TemporaryDirectory() as folder:
        path = write_guest(Path(folder), tell(0))
        with Launch(sev_es(path, write_variables(Path(folder))), DEBUG_SWAP).assembled() as launched:
            yield launched


@settings(max_examples=60)
@given(st.lists(requests, max_size=12))
def test_slot_and_mapping_follow_every_command_sequence(
    machine: Machine, sequence: list[tuple[int, int, int, int]]
) -> None:
    changes = machine.recorder.protection_count
    transitions = 0
    for unit, offset, size, value in sequence:
        before = machine.platform.flash[unit].memory.mode
        machine.platform.bus.write_mmio(BASES[unit] + offset, size, value)
        transitions += before is not machine.platform.flash[unit].memory.mode
        for number in (0, 1):
            array = machine.platform.flash[number].memory.mode is FlashMode.ARRAY
            assert flash_slots(machine, number) == (1 if array else 0)
            assert readonly_bytes(machine, f"flash{number}") == (SIZES[number] if array else 0)
        assert readonly_bytes(machine, "ram") == 0
    # More changes than transitions are possible: one access of 8 bytes is two write cycles.
    assert machine.recorder.protection_count - changes >= transitions


@given(st.lists(requests, max_size=12))
def test_any_sequence_ends_in_array_mode_by_the_read_array_command(
    machine: Machine, sequence: list[tuple[int, int, int, int]]
) -> None:
    for unit, offset, size, value in sequence:
        machine.platform.bus.write_mmio(BASES[unit] + offset, size, value)
    for unit in (0, 1):
        # A buffered program may still wait for as many words as its count says, then for its confirmation.
        for _ in range(258):
            machine.platform.bus.write_mmio(BASES[unit], 1, spec.READ_ARRAY)
        assert machine.platform.flash[unit].memory.mode is FlashMode.ARRAY
        assert readonly_bytes(machine, f"flash{unit}") == SIZES[unit]


def test_command_mode_of_one_unit_leaves_the_other_armed(machine: Machine) -> None:
    for _ in range(258):
        for unit in (0, 1):
            machine.platform.bus.write_mmio(BASES[unit], 1, spec.READ_ARRAY)
    machine.platform.bus.write_mmio(UNIT1, 1, spec.READ_STATUS)
    assert (flash_slots(machine, 1), readonly_bytes(machine, "flash1")) == (0, 0)
    assert (flash_slots(machine, 0), readonly_bytes(machine, "flash0")) == (1, IMAGE_SIZE)
    machine.platform.bus.write_mmio(UNIT1, 1, spec.READ_ARRAY)
    assert (flash_slots(machine, 1), readonly_bytes(machine, "flash1")) == (1, UNIT1_SIZE)
