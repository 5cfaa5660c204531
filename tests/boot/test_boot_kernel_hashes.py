"""Kernel hashes in the guest: firmware accepts what was measured and refuses what was swapped behind its back.

The host that lies measures one set of files and offers another by fw_cfg (edk2 OvmfPkg/AmdSev, BlobVerifierLib).
"""

from __future__ import annotations

import threading
from pathlib import Path
from time import monotonic

import pytest
from support.firmware_images import require_image, require_kernel

from casemate.abi.guest_kind import GuestKind
from casemate.confidential.preparation import LaunchOptions, prepare
from casemate.confidential.stages import launch
from casemate.host.clock import GuestClock
from casemate.host.exits import Interrupted
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.machine.console import Console
from casemate.machine.machine import Machine
from casemate.machine.recorder import Recorder
from casemate.machine.spec import MachineSpec
from casemate.testing.linux_init import initramfs, printing_init

pytestmark = pytest.mark.boot

HELLO = "hello from user mode"
SAMPLES, LOOP_BYTES = 6, 16


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(initramfs(printing_init(HELLO)))
    kernel = require_kernel("bookworm")
    append = "console=ttyS0 panic=-1 quiet"
    return MachineSpec(bios=tmp_path, kernel=kernel, initrd=initrd, append=append, kind=GuestKind.SEV)


def boot(measured: MachineSpec, offered: MachineSpec) -> str:
    """Launch ``measured``, offer the files of ``offered``; whether its first program runs or firmware stands still."""
    clock = GuestClock()
    host = ModelHypervisor(clock)
    prepared = prepare(measured, LaunchOptions(kernel_hashes=True), host)
    swapped = prepared.spec.replace(kernel=offered.kernel, initrd=offered.initrd, append=offered.append)
    recorder = Recorder()
    with Machine(swapped, host, clock, Console(recorder), recorder) as machine:
        launch(machine, prepared)
        return watch(machine)


def watch(machine: Machine) -> str:
    """Run until the first program printed its line, or the CPU of an open guest was in one loop for seconds.

    Firmware that refuses a kernel has printed nothing; a kernel that runs on a busy host may be in one loop as long.
    """
    places: list[int | None] = []
    deadline = monotonic() + 100
    while monotonic() < deadline:
        pause = threading.Timer(0.5, machine.vcpus.current.stop)
        pause.start()
        vm_exit = machine.vcpus.current.run()
        if HELLO.encode() in machine.console.text:
            return "runs"
        assert isinstance(vm_exit, Interrupted)
        places.append(machine.vcpus.current.rip())
        seen = [place for place in places[-SAMPLES:] if place is not None]
        stands_still = len(seen) == SAMPLES and max(seen) - min(seen) < LOOP_BYTES
        if stands_still and not machine.console.text:
            return "stands still"
    return "neither"


def changed(path: Path, at: int, folder: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    (folder / "changed").write_bytes(data)
    return folder / "changed"


@pytest.mark.parametrize("kind", [GuestKind.SEV, GuestKind.SEV_ES])
def test_firmware_accepts_the_kernel_that_was_measured(kind: GuestKind, spec: MachineSpec) -> None:
    spec = spec.replace(bios=require_image("OVMF.amdsev.fd", "sid"), kind=kind)
    assert boot(spec, spec) == "runs"


@pytest.mark.parametrize("what", ["kernel", "append"])
def test_firmware_refuses_one_changed_byte(what: str, spec: MachineSpec, tmp_path: Path) -> None:
    """The image's verifier says nothing in a release build: it stays where it is for ever, and no kernel runs."""
    spec = spec.replace(bios=require_image("OVMF.amdsev.fd", "sid"))
    assert spec.kernel is not None
    if what == "kernel":
        middle = spec.kernel.stat().st_size // 2
        offered = spec.replace(kernel=changed(spec.kernel, middle, tmp_path))
    else:
        offered = spec.replace(append=spec.append + " ")
    assert boot(spec, offered) == "stands still"


def test_stock_image_without_a_verifier_starts_what_was_not_measured(
    spec: MachineSpec, tmp_path: Path
) -> None:
    """It has an area for the hashes, so that they are measured; nothing in it compares them."""
    spec = spec.replace(bios=None, code=require_image("OVMF_CODE_4M.fd", "sid-ovmf-generic"))
    assert spec.initrd is not None
    assert boot(spec, spec.replace(initrd=changed(spec.initrd, -20, tmp_path))) == "runs"
