"""Programs of flash that the modelled host answers: nobody can tell them from others (docs/design/model.md)."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from casemate.devices.flash.sync import Sync
from casemate.events import Event, FlashAction, FlashCommand
from casemate.guests.entry import IMAGE_SIZE, make_image
from casemate.machine.boot import Attachments, boot
from casemate.machine.machine import Machine
from casemate.machine.outcome import Ending
from casemate.machine.spec import MachineSpec

UNIT1 = (1 << 32) - 2 * IMAGE_SIZE
LOG = 0x100000
LOG_BYTES = 0x1000
STORES = {1: "c605", 2: "66c705", 4: "c705"}
LOADS = {1: ("a0", "a2"), 2: ("66a1", "66a3"), 4: ("a1", "a3")}
EXIT = "b0 07 e6f4"


class Seen(NamedTuple):
    """All that a guest and its user can see."""

    contents: bytes
    printed: bytes
    events: list[FlashCommand | int]
    """Commands of flash and what was printed, in order."""
    flash: object


def without_times(value: Any) -> Any:
    """A part of a report, but for when things were and where its files are."""
    if isinstance(value, dict):
        return {
            name: without_times(item)
            for name, item in value.items()
            if name not in ("at", "activity", "file")
        }
    return [without_times(item) for item in value] if isinstance(value, list) else value


def store(offset: int, size: int, value: int) -> bytes:
    return bytes.fromhex(STORES[size]) + struct.pack("<II", UNIT1 + offset, value)[: 4 + size]


def load(offset: int, size: int, to: int) -> bytes:
    """Load from the unit, and note what was there."""
    take, put = (bytes.fromhex(opcode) for opcode in LOADS[size])
    return take + struct.pack("<I", UNIT1 + offset) + put + struct.pack("<I", LOG + to)


def say(value: int) -> bytes:
    return bytes.fromhex("66ba0204 b0") + bytes([value]) + b"\xee"  # mov dx, 0x402; mov al, value; out dx, al


def print_log() -> bytes:
    # mov esi, LOG; mov ecx, LOG_BYTES; mov dx, 0x402; rep outsb
    return (
        b"\xbe"
        + struct.pack("<I", LOG)
        + b"\xb9"
        + struct.pack("<I", LOG_BYTES)
        + bytes.fromhex("66ba0204 f36e")
    )


def run(folder: Path, code: bytes, sync: Sync) -> Seen:
    unit0, unit1 = folder / "code.fd", folder / "vars.fd"
    unit0.write_bytes(make_image(code + bytes.fromhex(EXIT), 32))
    unit1.write_bytes(b"\xff" * IMAGE_SIZE)
    spec = MachineSpec(code=unit0, variables=unit1, machine="bare", memory=4 << 20, sync=sync)
    printed = bytearray()
    events: list[FlashCommand | int] = []

    def hear(data: bytes) -> None:
        printed.extend(data)
        events.extend(data)

    def listen(machine: Machine) -> None:
        report = machine.recorder.report

        def note(event: Event) -> None:
            if isinstance(event, FlashCommand):
                assert event.ago >= 0
                events.append(event._replace(ago=0.0))
            report(event)

        machine.recorder.report = note  # type: ignore[method-assign]

    outcome = boot(spec, timeout=60, attachments=Attachments(debug_output=hear, on_start=listen))
    assert (outcome.ending, outcome.report["exit_port"]) == (Ending.EXIT_PORT, 7), outcome
    return Seen(
        unit1.read_bytes(),
        bytes(printed),
        events,
        [without_times(outcome.report[part]) for part in ("writes", "flash")],
    )


def random_guest(seed: int) -> bytes:
    """Mostly programs, and what else may happen to a unit between them."""
    rng = random.Random(seed)
    code, at = b"", 0
    for number in range(250):
        offset, size = rng.randrange(0x40), rng.choice((1, 1, 1, 2, 4))
        match rng.choices(("program", "load", "command", "data", "say"), (10, 5, 2, 2, 1))[0]:
            case "program":
                code += store(offset, size, rng.choice((0x10, 0x40))) + store(
                    offset, size, rng.getrandbits(8 * size)
                )
            case "load":
                code += load(rng.choice((offset, 0xFFE, 0xFFF)), size, at)
                at += size
            case "command":
                code += store(
                    offset, size, rng.choice((0xFF, 0x50, 0x70, 0x90, 0x98, 0x20, 0x10, 0x40, 0x60))
                )
            case "data":
                code += store(rng.choice((offset, 0xFFD, 0xFFF)), size, rng.getrandbits(8 * size))
            case "say":
                code += say(number & 0xFF)
    return code + store(0, 1, 0xFF) + print_log()


@pytest.mark.parametrize("seed", range(12))
def test_programs_answered_by_the_host_are_as_those_made_one_by_one(tmp_path: Path, seed: int) -> None:
    one_by_one, answered = tmp_path / "one", tmp_path / "all"
    for folder in (one_by_one, answered):
        folder.mkdir()
    code = random_guest(seed)
    assert run(answered, code, Sync.EXIT) == run(one_by_one, code, Sync.ALWAYS)


def test_thousands_of_programs_in_a_row_are_kept_in_order(tmp_path: Path) -> None:
    # mov edi, UNIT1; mov ecx, 3000
    # 1: mov byte [edi], 0x40; mov [edi], cl; cmp byte [edi], 0x80; jne end; inc edi; loop 1b
    loop = b"\xbf" + struct.pack("<I", UNIT1) + bytes.fromhex("b9b80b0000 c60740 880f 803f80 7503 47 e2f3")
    seen = run(tmp_path, loop + store(0, 1, 0xFF), Sync.EXIT)
    assert seen.contents[:3000] == bytes(count & 0xFF for count in range(3000, 0, -1))
    assert seen.contents[3000:] == b"\xff" * (IMAGE_SIZE - 3000)
    programs = [event for event in seen.events if isinstance(event, FlashCommand)]
    assert [event.offset for event in programs if event.action is FlashAction.PROGRAM] == list(range(3000))
