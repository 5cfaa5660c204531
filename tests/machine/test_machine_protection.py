"""What happens to a guest that writes into its flash, by protection and policy (docs/design/protection.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.assembler import assemble

from casemate.errors import SpecError
from casemate.guests.entry import IMAGE_SIZE, make_image
from casemate.machine.boot import boot
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.spec import MachineSpec
from casemate.memory.flash_memory import FlashMemory
from casemate.memory.protection import OnWrite

UNIT1 = (1 << 32) - 2 * IMAGE_SIZE
EXIT = "mov al, 7; out 0xf4, al"


def store(gpa: int, value: int) -> str:
    return f"mov byte [{gpa}], {value};"


def guest(folder: Path, *stores: tuple[int, int]) -> tuple[Path, Path]:
    code = "".join(store(gpa, value) for gpa, value in stores) + EXIT
    unit0, unit1 = folder / "code.fd", folder / "vars.fd"
    unit0.write_bytes(make_image(assemble(code), 32))
    unit1.write_bytes(b"\xee" * IMAGE_SIZE)
    return unit0, unit1


def run(folder: Path, *stores: tuple[int, int], **options: object) -> Outcome:
    unit0, unit1 = guest(folder, *stores)
    spec = MachineSpec(
        code=unit0,
        variables=unit1,
        machine="bare",
        memory=4 << 20,
        **options,  # type: ignore[arg-type]
    )
    return boot(spec, timeout=20)


def units(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "code.fd").read_bytes(), (folder / "vars.fd").read_bytes()


lifting = pytest.mark.parametrize("protection", ["vma", "view"])


@lifting
@pytest.mark.parametrize("unit", [0, 1])
def test_store_to_a_protected_mapping_kills_the_guest(tmp_path: Path, protection: str, unit: int) -> None:
    gpa = UNIT1 + 0x1234 if unit else (1 << 32) - 0x100
    before = units((guest(tmp_path, (gpa, 0x41)), tmp_path)[1])
    outcome = run(tmp_path, (gpa, 0x41), protection=protection, on_write=OnWrite.KILL)
    assert outcome.ending is Ending.VIOLATION
    assert outcome.exit_code == 1
    event = outcome.report["writes"]["events"][0]
    assert (event["unit"], event["gpa"], event["value"]) == (unit, gpa, 0x41)
    assert event["rip"] is not None
    assert f"{gpa:#x}" in outcome.detail
    assert units(tmp_path) == before


@lifting
def test_dropped_store_changes_nothing_and_the_guest_goes_on(tmp_path: Path, protection: str) -> None:
    outcome = run(tmp_path, (UNIT1, 0x41), (UNIT1 + 8, 0x42), protection=protection, on_write=OnWrite.DROP)
    assert outcome.ending is Ending.EXIT_PORT
    assert outcome.report["exit_port"] == 7
    assert outcome.report["writes"]["violations"] == 2
    assert units(tmp_path)[1] == b"\xee" * IMAGE_SIZE


def test_store_that_cannot_be_dropped_kills_the_guest(tmp_path: Path) -> None:
    unit0, unit1 = guest(tmp_path)
    unit0.write_bytes(make_image(assemble(f"xchg [{UNIT1}], al; {EXIT}"), 32))
    spec = MachineSpec(
        code=unit0, variables=unit1, machine="bare", memory=4 << 20, protection="vma", on_write=OnWrite.DROP
    )
    outcome = boot(spec, timeout=20)
    assert outcome.ending is Ending.VIOLATION
    assert "cannot be dropped" in outcome.detail


@lifting
def test_store_of_the_emulator_is_named_with_its_instruction(tmp_path: Path, protection: str) -> None:
    unit0, unit1 = guest(tmp_path)
    code = f"mov edi, {UNIT1}; mov dx, 0x80; mov ecx, 4; rep insb; {EXIT}"
    unit0.write_bytes(make_image(assemble(code), 32))
    spec = MachineSpec(
        code=unit0,
        variables=unit1,
        machine="bare",
        memory=4 << 20,
        protection=protection,  # type: ignore[arg-type]
        on_write=OnWrite.KILL,
    )
    outcome = boot(spec, timeout=20)
    event = outcome.report["writes"]["events"][0]
    assert (event["unit"], event["gpa"], event["size"]) == (1, UNIT1, 4)
    assert (event["instruction"], event["path"]) == ("rep insb [edi],dx", "the host's instruction emulator")
    assert (
        f"by rep insb [edi],dx at {event['rip']:#x}, executed by the host's instruction emulator"
        in outcome.detail
    )
    assert units(tmp_path)[1] == b"\xee" * IMAGE_SIZE


def test_flash_commands_reach_the_variable_file_behind_a_readonly_slot(tmp_path: Path) -> None:
    outcome = run(tmp_path, (UNIT1 + 0x10, 0x10), (UNIT1 + 0x10, 0x5A), (UNIT1 + 0x10, 0xFF))
    assert outcome.ending is Ending.EXIT_PORT
    writes = outcome.report["writes"]
    assert (writes["commands"], writes["programs"], writes["violations"], writes["events"]) == (2, 1, 0, [])
    assert units(tmp_path)[1] == b"\xee" * 0x10 + b"\x5a" + b"\xee" * (IMAGE_SIZE - 0x11)


def test_commands_to_the_code_unit_are_violations_and_change_nothing(tmp_path: Path) -> None:
    gpa = (1 << 32) - 0x100
    before = units((guest(tmp_path, (gpa, 0x10), (gpa, 0x5A), (gpa, 0xFF)), tmp_path)[1])
    outcome = run(tmp_path, (gpa, 0x10), (gpa, 0x5A), (gpa, 0xFF))
    # The guest's own code vanishes while its flash is in command mode: what it then does is its problem.
    assert outcome.report["writes"]["violations"] >= 1
    assert units(tmp_path) == before


def test_on_write_kill_ends_the_run_even_where_a_slot_traps_the_store(tmp_path: Path) -> None:
    outcome = run(tmp_path, (UNIT1, 0x41), on_write=OnWrite.KILL)
    assert outcome.ending is Ending.VIOLATION
    assert "no flash command" in outcome.detail


def test_audit_tells_every_change_of_a_protected_mapping(tmp_path: Path) -> None:
    outcome = run(tmp_path, protection="vma", on_write=OnWrite.KILL)
    audit = [(entry["unit"], entry["what"], entry["why"]) for entry in outcome.report["protection_audit"]]
    assert audit == [(0, "armed", "slot added"), (1, "armed", "slot added")]


def test_readonly_slots_need_no_mprotect_at_all(tmp_path: Path) -> None:
    assert run(tmp_path).report["protection_audit"] == []


def test_without_the_mprotect_the_store_lands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model takes writability from the real mapping: take the protection away, and the guest gets through."""
    monkeypatch.setattr(FlashMemory, "_protect", lambda self, readonly, change: None)
    outcome = run(tmp_path, (UNIT1, 0x41), protection="vma", on_write=OnWrite.KILL)
    assert outcome.ending is Ending.EXIT_PORT
    assert outcome.report["writes"]["violations"] == 0


@pytest.mark.parametrize("protection", ["vma", "view"])
def test_plain_guest_with_a_lifting_protection_must_say_what_a_store_does(
    tmp_path: Path, protection: str
) -> None:
    with pytest.raises(SpecError, match="--on-write"):
        run(tmp_path, protection=protection)


def test_bios_image_is_a_rom(tmp_path: Path) -> None:
    image = tmp_path / "bios.bin"
    image.write_bytes(make_image(assemble(store(0xFFFFFF00, 0x41) + EXIT), 32))
    outcome = boot(MachineSpec(bios=image, machine="bare", memory=4 << 20), timeout=20)
    assert outcome.ending is Ending.EXIT_PORT
    assert outcome.report["writes"]["violations"] == 1
    assert outcome.report["bios"]["protection"] == "readonly-slot"
    assert image.read_bytes() == make_image(assemble(store(0xFFFFFF00, 0x41) + EXIT), 32)
