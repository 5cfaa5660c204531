"""What recording costs: a flash command with and without its event, and the whole of a first boot."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from timeit import timeit

from benches.table import Table
from casemate.address import Gpa
from casemate.devices.flash.cfi import CfiFlash
from casemate.events import Event, EventSink, FlashAction, FlashCommand
from casemate.evidence.flash_log import FlashLog
from casemate.firmware.descriptors import find_firmware, firmware_roots
from casemate.machine.boot import boot
from casemate.machine.recorder import Recorder
from casemate.machine.spec import MachineSpec
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory
from casemate.memory.map import MemoryMap
from casemate.memory.protection import WriteProtection
from casemate.memory.region import RomDevice
from casemate.testing.recording_vm import RecordingVm

COMMANDS = 50_000
_SIZE = 0x84000
_PROGRAM = 0x10


class _Deaf:
    """A sink that takes note of nothing."""

    def report(self, event: Event) -> None:
        pass


def tables(runs: int) -> list[Table]:
    """Microseconds of a command, and its share of a boot."""
    recorder = Recorder()
    plain = min(_command_cost(_Deaf(), lambda view: None) for _ in range(runs))
    recorded = min(
        _command_cost(recorder, lambda view: recorder.watch_flash(1, FlashLog(view))) for _ in range(runs)
    )
    event = timeit(lambda: FlashCommand(1, FlashAction.PROGRAM, 0, 1), number=COMMANDS) / COMMANDS * 1e6
    cost = recorded - plain + event
    commands, seconds = _boot(runs)
    rows: tuple[tuple[str | float, ...], ...] = (
        ("a program, nobody listens, us", plain),
        ("a program, recorded, us", recorded),
        ("recording costs, with its event, us", cost),
        ("commands of a first boot", float(commands)),
        ("seconds of a first boot", seconds),
        ("of these for recording, %", 100 * commands * cost / 1e6 / seconds),
    )
    notes = (f"{COMMANDS} programs, best of {runs}; stock OVMF on the model, medians of {runs} boots",)
    return [Table("Recording what the guest does to its flash", ("what", "value"), rows, notes)]


def _command_cost(sink: EventSink, watch: Callable[[memoryview], None]) -> float:
    backing = Backing("vars", _SIZE)
    memory = FlashMemory(1, backing, WriteProtection.READONLY_SLOT, RecordingVm(), sink)
    flash = CfiFlash(1, memory, None, sink)
    memory.attach(MemoryMap(RecordingVm()), RomDevice("vars", backing, flash), Gpa(0xFFC00000))
    watch(memory.view)
    started = perf_counter()
    for offset in range(COMMANDS):
        flash.write_mmio(offset, 1, _PROGRAM)
        flash.write_mmio(offset, 1, 0x5A)
    return (perf_counter() - started) / COMMANDS * 1e6


def _boot(runs: int) -> tuple[int, float]:
    pair = find_firmware(firmware_roots(os.environ))
    assert pair.vars_template is not None
    outcomes = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            variables = Path(folder, "VARS.fd")
            variables.write_bytes(pair.vars_template.read_bytes())
            outcomes.append(
                boot(MachineSpec(code=pair.code, variables=variables), until="Shell> ", timeout=100)
            )
    commands: int = outcomes[0].report["writes"]["commands"]
    return commands, statistics.median(outcome.seconds for outcome in outcomes)
