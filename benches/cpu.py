"""What the modelled CPU pays for an exit: RDMSR, WRMSR, #UD, OUT, its APIC and interrupts, beside QEMU's TCG."""

from __future__ import annotations

import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

from benches.table import Cell, Table
from casemate.guests.entry import CODE32, make_image
from casemate.machine.boot import boot
from casemate.machine.outcome import Ending
from casemate.machine.spec import MachineSpec

TIMEOUT_SECONDS = 60
_COLUMNS = ("instruction", "casemate, ns", "QEMU TCG, ns", "casemate / QEMU")
_IDT, _HANDLER, _APIC = 0x2000, 0x3000, 0xFEE00000
_EXIT = "b0 07 e6f4 ebfe"  # mov al, 7; out 0xf4, al; jmp $


def _word(address: int, value: int) -> str:
    return "c705" + struct.pack("<II", address, value).hex()  # mov dword [address], value


def _handler(vector: int, code: str) -> str:
    """Put a handler and its gate into RAM, and load the IDT."""
    data = bytes.fromhex(code)
    data += b"\x90" * (-len(data) % 4)
    words = [_word(_HANDLER + at, *struct.unpack_from("<I", data, at)) for at in range(0, len(data), 4)]
    gate = _word(_IDT + 8 * vector, CODE32 << 16 | _HANDLER) + _word(_IDT + 8 * vector + 4, 0x8E00)
    return "".join(words) + gate + _word(0x1000, 0x2000 << 16 | 0x7FF) + _word(0x1004, 0) + "0f011d 00100000"


_HANDLE_UD = _handler(6, "83042402 cf")  # add dword [esp], 2; iret
# mov esi, 1; mov dword [EOI], 0; iret
_HANDLE_IPI = _handler(0x40, "be01000000" + _word(_APIC + 0xB0, 0) + "cf") + _word(_APIC + 0xF0, 0x1FF) + "fb"
# mov esi, 1; read IIR; end the interrupt at the 8259; iret
_HANDLE_SERIAL = (
    _handler(0x24, "be01000000 66bafa03 ec b020 e620 cf")
    + _word(_APIC + 0xF0, 0x1FF) + _word(_APIC + 0x350, 0x700)  # LINT0 takes the 8259
    + "b011 e620 b020 e621 b004 e621 b001 e621 b0ef e621"  # which lets IRQ 4 through, as vector 0x24
    + "66bafc03 b008 ee fb"  # OUT2; sti
)  # fmt: skip
_UNTIL_HANDLED = "85f6 74fc"  # test esi, esi; jz
INSTRUCTIONS = {
    "nothing": ("", "", 3_000_000),
    "RDMSR of the APIC's base": ("b9 1b000000", "0f32", 3_000_000),
    "WRMSR of the same": ("b9 1b000000 0f32", "0f30", 3_000_000),
    "RDMSR of EFER, the engine's own": ("b9 800000c0", "0f32", 3_000_000),
    "UD2, and its handler": (_HANDLE_UD, "0f0b", 1_000_000),
    "OUT to a device (CMOS)": ("b0 0f", "e670", 300_000),
    "load of the APIC's ID": ("", "a1 2000e0fe", 1_000_000),
    "store to the APIC's TPR": ("", _word(_APIC + 0x80, 0), 1_000_000),
    "interrupt to itself, and its handler": (
        _HANDLE_IPI,
        "31f6" + _word(_APIC + 0x300, 0x44040) + _UNTIL_HANDLED,
        100_000,
    ),
    # Its enable for an empty transmitter goes off and on: with the handler's, five accesses to ports.
    "interrupt of the serial port, and its handler": (
        _HANDLE_SERIAL,
        "31f6 66baf903 b000 ee b002 ee" + _UNTIL_HANDLED,
        20_000,
    ),
}
"""What comes first, the instruction, and how often."""


def image(setup: str, instruction: str, times: int) -> bytes:
    """A 32-bit guest that executes an instruction so often, and ends."""
    body = bytes.fromhex(instruction) + b"\x4f"  # dec edi
    loop = body + b"\x75" + struct.pack("<b", -(len(body) + 2))
    return make_image(
        bytes.fromhex(setup) + b"\xbf" + struct.pack("<I", times) + loop + bytes.fromhex(_EXIT), 32
    )


def on_casemate(path: Path) -> float:
    """CPU seconds of a run."""
    started = process_time()
    outcome = boot(MachineSpec(bios=path, memory=16 << 20), timeout=TIMEOUT_SECONDS)
    assert outcome.ending is Ending.EXIT_PORT, outcome
    return process_time() - started


def on_qemu(path: Path) -> float:
    """CPU seconds of a process."""
    line = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-machine",
        "q35",
        "-m",
        "16M",
        "-display",
        "none",
        "-bios",
        str(path),
    ]
    line += ["-nodefaults", "-serial", "null", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(line, check=False, timeout=TIMEOUT_SECONDS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tables(runs: int) -> list[Table]:
    """One table of nanoseconds an instruction, without those of the loop around it."""
    programs: dict[str, Callable[[Path], float]] = {"casemate": on_casemate}
    if shutil.which("qemu-system-x86_64"):
        programs["QEMU"] = on_qemu
    seconds: dict[tuple[str, str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(runs):
            for name, (setup, instruction, times) in INSTRUCTIONS.items():
                print(f"bench: {name}", file=sys.stderr)
                for count in (1, times):
                    path = Path(folder, "bios.bin")
                    path.write_bytes(image(setup, instruction, count))
                    for program, run in programs.items():
                        seconds.setdefault((program, name, count), []).append(run(path))

    def cost(program: str, name: str) -> float:
        times = INSTRUCTIONS[name][2]
        many, one = (statistics.median(seconds[program, name, count]) for count in (times, 1))
        return (many - one) / times * 1e9

    rows: list[tuple[Cell, ...]] = []
    for name in list(INSTRUCTIONS)[1:]:
        mine, its = (
            max(0.0, cost(program, name) - cost(program, "nothing")) if program in programs else None
            for program in ("casemate", "QEMU")
        )
        rows.append((name, mine, its, mine / its if mine is not None and its else None))
    note = f"CPU time of 32-bit code in a loop, less an empty loop and a guest of one round, medians of {runs} runs"
    return [Table("Exits of the modelled CPU", _COLUMNS, tuple(rows), (note,))]
