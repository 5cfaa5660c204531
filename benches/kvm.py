"""KVM: exits and slot flips beside a bare C loop, cold starts beside QEMU, in one run (docs/design/kvm.md)."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, perf_counter_ns

import casemate
from benches import kvm_flash
from benches.console import RunError
from benches.measure import compiled_environment
from benches.table import Cell, Table
from casemate.abi.guest_kind import GuestKind
from casemate.address import FOUR_GIB, Gpa, GuestRange
from casemate.devices.bus import Bus
from casemate.guests.entry import IMAGE_SIZE, Bits, make_image
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.kvm.modules import loaded_vendor_module
from casemate.host.kvm.vcpu import KvmVcpu
from casemate.host.slots import MemorySlot
from casemate.machine.recorder import Recorder
from casemate.memory.backing import Backing
from casemate.memory.map import MemoryMap
from casemate.memory.region import Mmio, Ram, Rom

LOOP = Path(__file__).with_name("kvm_loop.c")
EXITS, WARM_UP, FLIPS = 20_000, 100, 2_000
RAM_SIZE = 0x200000
HOLE = Gpa(0xFE400000)
PORT = 0x80
GUESTS: tuple[tuple[str, str, Bits], ...] = (
    ("OUT, 1 byte", "e680 ebfc", 16),
    ("IN, 1 byte", "e480 ebfc", 16),
    ("MMIO store, 4 bytes", "a3000040fe ebf9", 32),
    ("MMIO load, 4 bytes", "a1000040fe ebf9", 32),
)
LEAVE = bytes.fromhex("b000 e6f4 ebfe")  # mov al, 0; out 0xf4, al; jmp $


class _Counter:
    """The device behind the port and the address: answers zero, stops the vCPU at the last exit."""

    def __init__(self) -> None:
        self.vcpu: KvmVcpu | None = None
        self.started = 0
        self.nanoseconds = 0.0
        self._left = EXITS + WARM_UP

    def _exit(self) -> None:
        self._left -= 1
        if self._left == EXITS:
            self.started = perf_counter_ns()
        elif self._left == 0:
            self.nanoseconds = (perf_counter_ns() - self.started) / EXITS
            assert self.vcpu is not None
            self.vcpu.stop()

    def read_port(self, offset: int, size: int) -> int | None:
        self._exit()
        return 0

    def write_port(self, offset: int, size: int, value: int) -> bool:
        self._exit()
        return True

    def read_mmio(self, offset: int, size: int) -> int | None:
        self._exit()
        return 0

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        self._exit()
        return True


def tables(runs: int) -> list[Table]:
    """Round trips, flash, then cold starts. Raises UnsupportedError without KVM, RunError without compiler or QEMU."""
    KvmHypervisor()
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as folder:
        path = Path(folder)
        return [_round_trips(runs, path), kvm_flash.table(runs), _cold_starts(runs, path)]


def _round_trips(runs: int, folder: Path) -> Table:
    compiler = shutil.which("cc")
    if compiler is None:
        raise RunError("no C compiler (cc)")
    program = folder / "kvm_loop"
    subprocess.run([compiler, "-O2", "-o", program, LOOP], check=True)
    rows: list[tuple[Cell, ...]] = []
    for name, code, bits in GUESTS:
        image = make_image(bytes.fromhex(code), bits)
        rows.append(_row(name, runs, partial(_ours, image), partial(_c, program, image, EXITS)))
    rows.append(_row("slot deleted and added", runs, _flip, partial(_c, program, make_image(LEAVE), 0)))
    notes = (
        f"{loaded_vendor_module()}, medians of {runs} runs of {EXITS} exits or {FLIPS} flips of 2 MiB;",
        "ours goes through the bus to a device in Python",
    )
    return Table("KVM round trips (us)", ("", "casemate", "C", "difference"), tuple(rows), notes)


def _row(name: str, runs: int, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[Cell, ...]:
    pairs = [(ours(), theirs()) for _ in range(runs)]
    mine, c = (statistics.median(column) / 1000 for column in zip(*pairs, strict=True))
    return name, mine, c, mine - c


def _c(program: Path, image: bytes, exits: int) -> float:
    path = program.with_name("image.bin")
    path.write_bytes(image)
    done = subprocess.run([program, path, str(exits)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def _ours(image: bytes) -> float:
    counter, vm = _Counter(), KvmHypervisor().create_vm(GuestKind.PLAIN)
    ram, rom = Backing("ram", RAM_SIZE), Backing("rom", IMAGE_SIZE)
    rom.writable.view[:] = image
    memory_map = MemoryMap(vm)
    memory_map.add(Ram("ram", ram), Gpa(0))
    memory_map.add(Rom("rom", rom), Gpa(FOUR_GIB - IMAGE_SIZE))
    memory_map.add(Mmio("counter", 0x1000, counter), HOLE)
    memory_map.commit()
    bus = Bus(memory_map, vm, Recorder())
    bus.claim_ports(PORT, 1, counter)
    counter.vcpu = vm.create_vcpu(bus, None)
    counter.vcpu.run()
    vm.close()
    ram.close()
    rom.close()
    return counter.nanoseconds


def _flip() -> float:
    vm, ram = KvmHypervisor().create_vm(GuestKind.PLAIN), Backing("ram", RAM_SIZE)
    slot = MemorySlot(0, GuestRange(Gpa(0), RAM_SIZE), ram.writable.hva)
    vm.add_slot(slot)
    start = perf_counter_ns()
    for _ in range(FLIPS):
        vm.delete_slot(0)
        vm.add_slot(slot)
    duration = perf_counter_ns() - start
    vm.close()
    ram.close()
    return duration / FLIPS


def _cold_starts(runs: int, folder: Path) -> Table:
    image = folder / "leave.bin"
    image.write_bytes(make_image(LEAVE))
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise RunError("no qemu-system-x86_64")
    theirs = [qemu, "-accel", "kvm", "-nodefaults", "-display", "none", "-m", "16", "-bios", str(image)]
    leave = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    boot = ["boot", "--host", "kvm", "--memory", "16M", "--bios", str(image), "--serial", "none"]
    programs = {
        "casemate": ([str(Path(sys.executable).with_name("casemate")), *boot], 0),
        "QEMU q35": ([*theirs, *leave, "-machine", "q35"], 1),
        "QEMU microvm": ([*theirs, *leave, "-machine", "microvm"], 1),
    }
    rounds: list[dict[str, tuple[float, float]]] = []
    calls: list[float] = []
    for _ in range(runs + 1):
        rounds.append({name: _start(*program) for name, program in programs.items()})
        calls.append(_call(image))
    medians = {
        # The first of each fills caches.
        name: [
            statistics.median(column) for column in zip(*(found[name] for found in rounds[1:]), strict=True)
        ]
        for name in programs
    }
    q35, call = medians["QEMU q35"], statistics.median(calls[1:])
    rows: tuple[tuple[Cell, ...], ...] = (
        *(
            (name, seconds * 1000, seconds / q35[0], memory, memory / q35[1])
            for name, (seconds, memory) in medians.items()
        ),
        ("casemate, a call", call * 1000, call / q35[0], None, None),
    )
    notes = (
        f"64 KiB of firmware that writes to port 0xf4 at once, 16 MiB of RAM; medians of {runs} interleaved runs;",
        "a call is casemate.boot in a process that has made one before",
    )
    columns = ("", "ms", "of q35", "peak MiB", "of q35")
    return Table("Process start to exit on KVM", columns, rows, notes)


def _call(image: Path) -> float:
    start = perf_counter()
    outcome = casemate.boot(casemate.MachineSpec(bios=image, memory=16 << 20), host="kvm")
    if outcome.ending is not casemate.Ending.EXIT_PORT:
        raise RunError(f"casemate.boot ended with {outcome}")
    return perf_counter() - start


def _start(command: list[str], expected: int) -> tuple[float, float]:
    start = perf_counter()
    process = subprocess.Popen(
        command,
        env=compiled_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, status, usage = os.wait4(process.pid, 0)
    duration = perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stderr is not None
    errors = process.stderr.read().decode(errors="replace")
    process.stderr.close()
    if process.returncode != expected:
        raise RunError(f"{command[0]} ended with {process.returncode}: {errors[-300:]}")
    return duration, usage.ru_maxrss / 1024
