"""Input at the serial port interrupts a guest that waits for it in HLT, on both hosts (docs/design/kvm.md)."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from support.hosts import kvm_or_skip

from casemate.guests.entry import make_image
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import Hypervisor
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.machine.boot import Attachments, boot
from casemate.machine.machine import Machine
from casemate.machine.outcome import Ending
from casemate.machine.spec import MachineSpec

_SETUP = bytes.fromhex(
    "31c0 8ed8 8ed0 bc0070 c70630004000 c706320000f0"  # stack; vector 0x0c is F000:0040
    "b011e620 b008e621 b004e621 b001e621 b0efe621"  # the 8259: vectors from 8 on, IRQ 4 alone
    "baf903 b001 ee bafc03 b008 ee baf803 b052 ee"  # the port interrupts for input; print R
    "fb f4 ebfd"  # sti; 1: hlt; jmp 1b
)
_HANDLER = bytes.fromhex("baf803 ec e6f4 ebfe")  # in al, dx; out 0xf4, al
ECHO = make_image(_SETUP.ljust(0x40, b"\x90") + _HANDLER, 16)


@pytest.fixture(params=["kvm", "model"])
def host(request: pytest.FixtureRequest) -> str:
    if request.param == "kvm":
        kvm_or_skip()
    return str(request.param)


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    (tmp_path / "echo.bin").write_bytes(ECHO)
    return MachineSpec(bios=tmp_path / "echo.bin", memory=4 << 20)


def make(host: str, clock: GuestClock) -> Hypervisor:
    return KvmHypervisor() if host == "kvm" else ModelHypervisor(clock)


def test_input_of_another_thread_interrupts_the_guest(host: str, spec: MachineSpec) -> None:
    machines: list[Machine] = []
    printed = threading.Event()

    def wait(finished: threading.Event, seconds: float) -> None:
        if printed.wait(seconds):
            machines[0].console.type(b"k")
        finished.wait(seconds)

    attached = Attachments(output=lambda _byte: printed.set(), on_start=machines.append, wait=wait)
    outcome = boot(spec, timeout=20, attachments=attached, hypervisor=lambda clock: make(host, clock))
    assert outcome.ending is Ending.EXIT_PORT, outcome
    assert outcome.report["exit_port"] == ord("k")


def test_text_typed_at_a_prompt_interrupts_the_guest(host: str, spec: MachineSpec) -> None:
    """It comes on the vCPU's own thread, within the access that printed the prompt."""
    outcome = boot(spec, typed=["k"], prompt="R", timeout=20, hypervisor=lambda clock: make(host, clock))
    assert outcome.report["exit_port"] == ord("k"), outcome
