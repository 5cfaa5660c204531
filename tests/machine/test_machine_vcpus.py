"""More than one vCPU, on each host: started, stopped, reset, and refused where there can be none."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.assembler import assemble
from support.hosts import kvm_or_skip
from support.second_vcpu import start_second

from casemate.abi.kvm.structs import CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry2
from casemate.cli import main
from casemate.errors import SpecError
from casemate.guests.actions import tell
from casemate.guests.entry import IMAGE_SIZE, make_image
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import Hypervisor
from casemate.host.kvm.cpuid import cpuid_of_vcpu
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.machine.boot import boot
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.spec import MachineSpec

MIB = 1 << 20
COUNTER = 0x9000
SPIN = "jmp $"


def hypervisor_of(host: str, clock: GuestClock) -> Hypervisor:
    return ModelHypervisor(clock) if host == "model" else kvm_or_skip()


@pytest.fixture(params=["model", "kvm"])
def host(request: pytest.FixtureRequest) -> str:
    if request.param == "kvm":
        kvm_or_skip()
    return str(request.param)


def run(folder: Path, host: str, code: bytes, vcpus: int = 2, timeout: float = 20) -> Outcome:
    (folder / "bios.bin").write_bytes(make_image(code, 32))
    spec = MachineSpec(bios=folder / "bios.bin", memory=4 * MIB, vcpus=vcpus)
    return boot(spec, timeout=timeout, hypervisor=lambda clock: hypervisor_of(host, clock))


def test_second_vcpu_is_started_by_the_first(tmp_path: Path, host: str) -> None:
    outcome = run(tmp_path, host, start_second("mov al, 0x42; out 0xf4, al; hlt") + assemble(SPIN))
    assert outcome.ending is Ending.EXIT_PORT
    assert outcome.report["exit_port"] == 0x42
    assert outcome.report["guest"]["vcpus"] == 2


def test_second_vcpu_waits_until_it_is_started(tmp_path: Path, host: str) -> None:
    outcome = run(tmp_path, host, tell(7))
    assert outcome.report["exit_port"] == 7


def test_reset_by_one_vcpu_resets_all(tmp_path: Path, host: str) -> None:
    """The second vCPU counts in memory and asks for the reset; the first ends the run at its third start."""
    first = assemble(f"cmp byte [{COUNTER}], 2; jne start; mov al, 9; out 0xf4, al; jmp $; start:")
    second = f"inc byte [{COUNTER}]; mov dx, 0xcf9; mov al, 6; out dx, al; jmp $"
    outcome = run(tmp_path, host, first + start_second(second) + assemble(SPIN))
    assert outcome.report["exit_port"] == 9


def test_both_vcpus_print_one_at_a_time(tmp_path: Path, host: str) -> None:
    """Each sends 200 bytes to the serial port; what arrives is all of them, whole."""
    second = f"mov dx, 0x3f8; mov cx, 200; mov al, 0x62; print: out dx, al; loop print; inc byte [{COUNTER}]; jmp $"
    first = f"""
                mov dx, 0x3f8; mov ecx, 200; mov al, 0x61
        print:  out dx, al
                loop print
        wait:   cmp byte [{COUNTER}], 1
                jne wait
    """
    outcome = run(tmp_path, host, start_second(second) + assemble(first) + tell(1))
    assert outcome.report["exit_port"] == 1
    assert (outcome.serial.count("a"), outcome.serial.count("b")) == (200, 200)


def test_two_vcpus_program_flash_by_turns(tmp_path: Path, host: str) -> None:
    """The first says PROGRAM, the second which byte, each when the other one told so in RAM: no exit orders them."""
    count, first = 400, (1 << 32) - 2 * IMAGE_SIZE
    flag = struct.pack("<I", COUNTER)
    ours = (
        b"\xbf" + struct.pack("<I", first) + b"\xb9" + struct.pack("<I", count)  # mov edi, first; mov ecx, count
        + b"\xc6\x07\x10\x47"  # 1: mov byte [edi], 0x10; inc edi
        + b"\xc6\x05" + flag + b"\x01"  # mov byte [COUNTER], 1
        + b"\x80\x3d" + flag + b"\x00\x75\xf7"  # 2: cmp byte [COUNTER], 0; jne 2b
        + b"\xe2\xea\xc6\x47\xff\xff"  # loop 1b; mov byte [edi - 1], 0xff
    )  # fmt: skip
    theirs = (
        b"\xb8\xf0\xff\x8e\xd8\x66\x0f\x01\x16\x20\x00"  # mov ax, 0xfff0; mov ds, ax; lgdt [the image's]
        + b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0\xb8\x10\x00\x8e\xd8"  # cr0 |= PE; mov ax, DATA; mov ds, ax
        + b"\x66\xbf" + struct.pack("<I", first) + b"\xb9" + struct.pack("<H", count)
        + b"\x67\x80\x3d" + flag + b"\x01\x75\xf6"  # 1: cmp byte [COUNTER], 1; jne 1b
        + b"\x67\x88\x0f\x66\x47"  # mov [edi], cl; inc edi
        + b"\x67\xc6\x05" + flag + b"\x00\xe2\xe7\xeb\xfe"  # mov byte [COUNTER], 0; loop 1b; jmp $
    )  # fmt: skip
    (tmp_path / "code.fd").write_bytes(make_image(start_second(theirs) + ours + tell(1), 32))
    (tmp_path / "vars.fd").write_bytes(b"\xee" * IMAGE_SIZE)
    spec = MachineSpec(code=tmp_path / "code.fd", variables=tmp_path / "vars.fd", memory=4 * MIB, vcpus=2)
    outcome = boot(spec, timeout=60, hypervisor=lambda clock: hypervisor_of(host, clock))
    assert (outcome.ending, outcome.report["writes"]["violations"]) == (Ending.EXIT_PORT, 0)
    data = (tmp_path / "vars.fd").read_bytes()
    assert data[: count + 1] == bytes(count - i & 0xFF for i in range(count)) + b"\xee"


def test_timeout_ends_two_busy_vcpus(tmp_path: Path, host: str) -> None:
    before = threading.active_count()
    outcome = run(tmp_path, host, start_second(SPIN) + assemble(SPIN), timeout=0.5)
    assert outcome.ending is Ending.TIMEOUT
    assert threading.active_count() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_two_busy_vcpus(tmp_path: Path, host: str, number: signal.Signals, code: int) -> None:
    (tmp_path / "bios.bin").write_bytes(
        make_image(start_second(SPIN) + assemble("mov dx, 0x3f8; mov al, 0x21; out dx, al; jmp $"), 32)
    )
    line = ["boot", "--host", host, "--cpus", "2", "--bios", str(tmp_path / "bios.bin"), "--serial", "stdio"]
    process = subprocess.Popen(
        [sys.executable, "-m", "casemate", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.read(1) == b"!"
    os.kill(process.pid, number)
    assert process.wait() == code
    process.communicate()


def test_fifty_starts_of_two_vcpus_leave_nothing_behind(tmp_path: Path, host: str) -> None:
    run(tmp_path, host, tell(1))
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(50):
        assert run(tmp_path, host, start_second(SPIN) + tell(1)).report["exit_port"] == 1
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_more_vcpus_than_kvm_takes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kvm_or_skip()
    from casemate.abi.kvm.capabilities import Capability
    from casemate.host.kvm.system import KvmSystem

    known = KvmSystem.extension
    limits = (Capability.MAX_VCPUS, Capability.NR_VCPUS)
    monkeypatch.setattr(
        KvmSystem, "extension", lambda self, item, vm=None: 1 if item in limits else known(self, item, vm)
    )
    (tmp_path / "bios.bin").write_bytes(make_image(tell(1), 32))
    assert main(["boot", "--host", "kvm", "--cpus", "2", "--bios", str(tmp_path / "bios.bin"), "--json"]) == 5
    assert "use --cpus 1" in capsys.readouterr().err


def test_more_vcpus_than_the_model_takes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bios.bin").write_bytes(make_image(tell(1), 32))
    assert (
        main(["boot", "--host", "model", "--cpus", "17", "--bios", str(tmp_path / "bios.bin"), "--json"]) == 5
    )
    error = capsys.readouterr().err
    assert "a VM of this host (model) takes 16" in error
    assert "use --cpus 16" in error


@pytest.mark.parametrize("count", [0, 256, -1])
def test_impossible_numbers_of_vcpus_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(SpecError, match="vCPUs are not between 1 and 255"):
        MachineSpec(bios=tmp_path, vcpus=count)


def test_cpuid_tells_who_and_how_many() -> None:
    leaves = [
        CpuidEntry2(function=0x1, ebx=0x12340000, edx=0),
        CpuidEntry2(function=0xB, index=0, flags=CPUID_FLAG_SIGNIFICANT_INDEX),
        CpuidEntry2(function=0xB, index=1, flags=CPUID_FLAG_SIGNIFICANT_INDEX),
        CpuidEntry2(function=0x80000008, ecx=0xFFFF),
    ]
    first, smt, core, sizes = cpuid_of_vcpu(leaves, 2, 3)
    assert (first.ebx >> 24, first.ebx >> 16 & 0xFF, first.edx >> 28 & 1) == (2, 4, 1)
    assert (smt.eax, smt.ebx, smt.ecx, smt.edx) == (0, 1, 0x100, 2)
    assert (core.eax, core.ebx, core.ecx, core.edx) == (2, 3, 0x201, 2)
    assert sizes.ecx == 2 << 12 | 2
    alone = cpuid_of_vcpu(leaves, 0)[0]
    assert (alone.ebx >> 16 & 0xFF, alone.edx >> 28 & 1) == (1, 0)
