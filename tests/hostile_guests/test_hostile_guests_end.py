"""Guests that attack the monitor: each ends as an exit, a fault in the guest or an outcome (SPECIFICATION.md).

The images in tests/data/cases/attack are 64 KiB of flat code each; the others are made here.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.assembler import assemble

from casemate.cli import main
from casemate.devices.exit_port import ExitPort
from casemate.devices.lapic_timer import LapicTimer
from casemate.guests.entry import make_image
from casemate.host.model.cpu.processor import Processor
from casemate.machine.boot import boot
from casemate.machine.outcome import Ending
from casemate.machine.spec import MachineSpec

CASES = Path(__file__).parent.parent / "data" / "cases" / "attack"
CASEMATE = [sys.executable, "-m", "casemate", "boot", "--host", "model"]
SWEEP = bytes.fromhex("31c9 0f32 41 ebfb f4f4f4")
LEAVE = "b0 07 e6 f4 eb fe"
"""mov al, 7; out 0xf4, al; jmp $"""


def document(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    main(["boot", "--host", "model", "--timeout", "5", "--json", *map(str, words)])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("name", "outcome", "exit_port"),
    [
        ("cmos_day0", "exit-port", 7),
        ("rtc_future", "timeout", None),  # reads the clock for ever
        ("ins-over-rom-end", "triple-fault", None),  # #PF, and no IDT
        ("lock-bt-register", "triple-fault", None),  # #UD, and no IDT
        ("rep-stos-es-base", "exit-port", 85),
    ],
)
def test_guest_ends_as_a_processor_would_have_it(
    capsys: pytest.CaptureFixture[str], name: str, outcome: str, exit_port: int | None
) -> None:
    timeout = () if outcome != "timeout" else ("--timeout", "1")
    found = document(capsys, "--bios", CASES / f"{name}.bin", *timeout)
    assert (found["outcome"], found["exit_port"]) == (outcome, exit_port)
    assert found["writes"]["violations"] == 0


@pytest.mark.parametrize("name", ["push-into-rom", "push-into-vars"])
def test_exception_frames_in_protected_memory_are_violations(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    code, variables = CASES / f"{name}.bin", tmp_path / "vars.fd"
    blank = b"\xff" * 0x20000
    variables.write_bytes(blank)
    found = document(capsys, "--code", code, "--vars", variables)
    assert found["outcome"] == "exit-port"
    assert found["writes"]["violations"] > 0
    assert found["flash"][0]["sha256"] == found["flash"][0]["input_sha256"]
    assert variables.read_bytes() == blank


@pytest.mark.parametrize(
    ("century", "year", "month", "day", "hour"),
    [
        (0x00, 0x00, 0x01, 0x00, 0x00),  # the day before a year that datetime does not have
        (0x99, 0x99, 0x12, 0x31, 0x23),  # the last day of all
        (0xFF, 0xFF, 0xFF, 0xFF, 0xFF),  # no number at all
        (0x63, 0x62, 0x0C, 0x1F, 0x17),
        (0x19, 0x69, 0x00, 0x00, 0x00),  # before the epoch
    ],
)
@pytest.mark.parametrize("mode", [0x82, 0x86], ids=["BCD", "binary"])
def test_clock_takes_any_date_and_runs_on(
    tmp_path: Path, century: int, year: int, month: int, day: int, hour: int, mode: int
) -> None:
    stores = [(0x0B, mode), (0x32, century), (9, year), (8, month), (7, day), (4, hour), (2, 0x59), (0, 0x59)]
    stores.append((0x0B, mode & 0x7F))
    code = b"".join(bytes((0xB0, index, 0xE6, 0x70, 0xB0, value, 0xE6, 0x71)) for index, value in stores)
    code += b"".join(
        bytes((0xB0, index, 0xE6, 0x70, 0xE4, 0x71)) for index in (0x32, 9, 8, 7, 6, 4, 2, 0, 0x0C)
    )
    path = tmp_path / "guest.bin"
    path.write_bytes(make_image(code + bytes.fromhex(LEAVE), 32))
    outcome = boot(MachineSpec(bios=path, memory=16 << 20), timeout=20)
    assert (outcome.ending, outcome.report["exit_port"]) == (Ending.EXIT_PORT, 7)


@pytest.mark.parametrize(("first", "code"), [(0, 1), (0x1000, 7)])
def test_sweep_over_all_registers_keeps_its_memory_bounded(tmp_path: Path, first: int, code: int) -> None:
    image = (CASES / "msr_sweep.bin").read_bytes()
    if first:  # mov ecx, FIRST in place of xor ecx, ecx: the registers of an x2APIC fault at first
        assert SWEEP in image
        image = image.replace(SWEEP, b"\xb9" + first.to_bytes(4, "little") + SWEEP[2:7])
    (tmp_path / "sweep.bin").write_bytes(image)
    line = [*CASEMATE, "--bios", str(tmp_path / "sweep.bin"), "--timeout", "4", "--serial", "none"]
    # A process that pytest starts itself inherits its peak from pytest.
    watched = "import resource, subprocess, sys; print(subprocess.run(sys.argv[1:]).returncode,"
    watched += " resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    told = subprocess.run([sys.executable, "-c", watched, *line], stdout=subprocess.PIPE, check=True).stdout
    exit_code, peak_kib = map(int, told.split())
    assert exit_code == code
    assert peak_kib < 200 << 10


@pytest.mark.parametrize("end", ["timeout", "SIGTERM"])
def test_reader_that_stops_reading_does_not_keep_the_guest_from_ending(end: str) -> None:
    reader, writer = os.pipe()
    timeout = "3" if end == "timeout" else "600"
    line = [*CASEMATE, "--bios", str(CASES / "flood_serial.bin"), "--timeout", timeout]
    with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        if end == "SIGTERM":
            os.read(reader, 1)  # the guest runs
            process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    os.close(reader)
    assert process.returncode == (7 if end == "timeout" else 143)
    assert error.startswith(b"casemate: t")


UNKNOWN_LEAF = 0x1234
READ_TIMER = "mov eax, dword [0xfee00390]; jmp $"
"""The current count of the local APIC's timer."""


@pytest.mark.parametrize(
    ("owner", "method", "code"),
    [
        (ExitPort, "write_port", "mov al, 7; out 0xf4, al; jmp $"),
        (Processor, "answer", f"mov eax, {UNKNOWN_LEAF}; cpuid; jmp $"),
        (LapicTimer, "current_count", READ_TIMER),
    ],
    ids=["port", "cpuid", "apic"],
)
def test_exception_of_ours_ends_that_guest_with_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, code: str
) -> None:
    answer = getattr(owner, method)

    def fail(*arguments: object) -> object:
        if owner is Processor and UNKNOWN_LEAF not in arguments:
            return answer(*arguments)
        raise ZeroDivisionError("as the test wants it")

    monkeypatch.setattr(owner, method, fail)
    path = tmp_path / "guest.bin"
    path.write_bytes(make_image(assemble(code), 32))
    outcome = boot(MachineSpec(bios=path, memory=16 << 20), timeout=20)
    assert outcome.ending is Ending.INTERNAL_ERROR
    assert outcome.exit_code == 6
    assert "ZeroDivisionError: as the test wants it" in outcome.detail
    assert outcome.report["bios"]["size"] == 64 << 10


def limited(which: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (most, most))


def test_little_address_space_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "guest.bin"
    path.write_bytes(make_image(bytes.fromhex(LEAVE), 32))
    done = subprocess.run(
        [*CASEMATE, "--bios", path, "--serial", "none"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited(resource.RLIMIT_AS, 500_000 << 10),
    )
    assert done.returncode == 5
    assert "address space" in done.stderr
    assert "Traceback" not in done.stderr


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("option", ["--code", "--vars", "--vars-template", "--bios"])
@pytest.mark.parametrize("size", [20 << 30, 1 << 40])
def test_huge_file_is_refused_by_its_size(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, size: int
) -> None:
    huge = sparse(tmp_path / "huge.fd", size)
    code = tmp_path / "guest.bin"
    code.write_bytes(make_image(bytes.fromhex(LEAVE), 32))
    others = {
        "--vars": ("--code", code),
        "--vars-template": ("--code", code, "--vars", tmp_path / "new.fd"),
    }.get(option, ())
    assert main(["boot", "--host", "model", "--serial", "none", *map(str, (*others, option, huge))]) == 4
    assert "huge.fd" in capsys.readouterr().err
    assert huge.stat().st_blocks == 0
    assert not (tmp_path / "new.fd").exists()


@pytest.mark.parametrize("option", ["--kernel", "--bios", "--code", "--initrd"])
def test_fifo_is_refused_and_not_waited_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bytes(0x1F1) + b"\4" + bytes(0x10) + b"HdrS" + bytes(4096))
    code = tmp_path / "guest.bin"
    code.write_bytes(make_image(bytes.fromhex(LEAVE), 32))
    others = ("--code", code, "--kernel", kernel) if option == "--initrd" else ()
    assert main(["boot", "--host", "model", "--serial", "none", *map(str, (*others, option, fifo))]) == 4
    assert "regular file" in capsys.readouterr().err


def test_text_that_is_no_utf_8_is_waited_for_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "guest.bin"
    path.write_bytes(make_image(bytes.fromhex("66 ba f8 03 b0 ff ee eb fe"), 32))  # prints 0xff
    outcome = boot(MachineSpec(bios=path, memory=16 << 20), until="\udcff", timeout=20)
    assert outcome.ending is Ending.UNTIL
