"""A thousand guests started and stopped on every host leave nothing behind."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
from contract_hosts import HostName, make_host

from casemate.guests.entry import make_image
from casemate.machine.boot import boot
from casemate.machine.outcome import Ending
from casemate.machine.spec import MachineSpec

# Many, so that a leak in a few of them shows; they take ten to twenty seconds.
STARTS = 1000
WARM_UP = 50


def left_behind() -> dict[str, int]:
    gc.collect()
    mappings = Path("/proc/self/maps").read_text().splitlines()
    guests = [line for line in mappings if "casemate-" in line or "kvm" in line]
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "guest mappings": len(guests),
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")),
    }


@pytest.mark.boot
@pytest.mark.parametrize("host", ["model", "kvm"])
def test_a_thousand_starts_leave_nothing_behind(host: HostName, tmp_path: Path) -> None:
    image = tmp_path / "guest.bin"
    image.write_bytes(make_image(b"\xb0\x07\xe6\xf4\xeb\xfe"))  # mov al, 7; out 0xf4, al; jmp $
    spec = MachineSpec(bios=image, memory=1 << 20, machine="bare")

    def start() -> None:
        outcome = boot(spec, timeout=20, hypervisor=lambda clock: make_host(host))
        assert outcome.ending is Ending.EXIT_PORT

    for _ in range(WARM_UP):
        start()
    before, mappings = left_behind(), count_mappings()
    for _ in range(STARTS - WARM_UP):
        start()
    assert left_behind() == before
    assert count_mappings() <= mappings + 20


@pytest.mark.parametrize("vcpus", [1, 3])
def test_a_guest_that_ended_holds_no_address_space_until_python_collects(vcpus: int, tmp_path: Path) -> None:
    image = tmp_path / "guest.bin"
    image.write_bytes(make_image(b"\xb0\x07\xe6\xf4\xeb\xfe"))
    spec = MachineSpec(bios=image, memory=1 << 20, machine="bare", vcpus=vcpus)
    gc.collect()
    gc.disable()
    try:
        boot(spec, timeout=20, hypervisor=lambda clock: make_host("model"))
        before = address_space()
        for _ in range(3):
            boot(spec, timeout=20, hypervisor=lambda clock: make_host("model"))
        assert address_space() < before + (512 << 20)  # an engine has a GiB for its translations
    finally:
        gc.enable()


def address_space() -> int:
    """Of this process, in bytes."""
    pages, *_ = Path("/proc/self/statm").read_text().split()
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def count_mappings() -> int:
    """All of them; allocators add some of their own."""
    return len(Path("/proc/self/maps").read_text().splitlines())
