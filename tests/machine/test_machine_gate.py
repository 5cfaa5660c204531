"""A guest that is paused changes nothing and goes on as if nothing had been; resets reach it meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.assembler import assemble
from support.hosts import kvm_or_skip
from support.second_vcpu import start_second

from casemate.address import Gpa
from casemate.guests.entry import make_image
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.machine.boot import Attachments, boot
from casemate.machine.machine import Machine
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.spec import MachineSpec

MIB = 1 << 20
COUNTER, OTHER_COUNTER, STOP = 0x9000, 0x9004, 0x9008
COUNT = assemble(f"again: inc dword [{COUNTER}]; jmp again")
OTHER_COUNT = f"again: inc dword [{OTHER_COUNTER}]; jmp again"


class Running:
    """A guest that runs meanwhile."""

    def __init__(self, folder: Path, code: bytes, host: str, vcpus: int, paused: bool) -> None:
        (folder / "guest.bin").write_bytes(make_image(code, 32))
        self.spec = MachineSpec(bios=folder / "guest.bin", memory=4 * MIB, vcpus=vcpus)
        self.make = None if host == "model" else lambda clock: KvmHypervisor()
        self.paused = paused
        self.outcome: Outcome | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(20)

    def _run(self) -> None:
        attachments = Attachments(on_start=self._start)
        self.outcome = boot(self.spec, timeout=20, attachments=attachments, hypervisor=self.make)

    def _start(self, machine: Machine) -> None:
        self.machine = machine
        machine.vcpus.gate.is_paused = self.paused
        self._ready.set()

    def count(self, gpa: int = COUNTER) -> int:
        return int.from_bytes(self.machine.platform.memory.read(Gpa(gpa), 4) or b"", "little")

    def counts_on(self, *where: int) -> None:
        """Returns when every counter has moved."""
        for gpa in where:
            before = self.count(gpa)
            while self.count(gpa) == before:
                assert self.machine.state.ending is None

    def stands_still(self, *where: int) -> None:
        before = [self.count(gpa) for gpa in where]
        for _ in range(2000):
            assert [self.count(gpa) for gpa in where] == before

    def ended(self) -> Outcome:
        self._thread.join(20)
        assert self.outcome is not None
        return self.outcome


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with _started(tmp_path) as start:
        yield start


@contextmanager
def _started(folder: Path) -> Iterator[Start]:
    running: list[Running] = []

    def start(code: bytes, host: str = "model", vcpus: int = 1, *, paused: bool = False) -> Running:
        if host == "kvm":
            kvm_or_skip()
        running.append(Running(folder, code, host, vcpus, paused))
        return running[-1]

    yield start
    for guest in running:
        guest.machine.state.end(Ending.LEFT)
        guest.ended()


on_each_host = pytest.mark.parametrize("host", ["model", "kvm"])


@on_each_host
def test_paused_guest_changes_nothing_until_it_goes_on(start: Start, host: str) -> None:
    guest = start(COUNT, host)
    for _ in range(20):
        guest.counts_on(COUNTER)
        guest.machine.vcpus.gate.pause()
        guest.stands_still(COUNTER)
        guest.machine.vcpus.gate.resume()


def test_both_vcpus_stand_still(start: Start) -> None:
    guest = start(start_second(OTHER_COUNT) + COUNT, "kvm", 2)
    for _ in range(20):
        guest.counts_on(COUNTER, OTHER_COUNTER)
        guest.machine.vcpus.gate.pause()
        guest.stands_still(COUNTER, OTHER_COUNTER)
        guest.machine.vcpus.gate.resume()


@on_each_host
def test_pauses_lose_and_repeat_nothing(start: Start, host: str) -> None:
    """Each increment happens once, however often the guest is paused meanwhile."""
    code = f"""
                mov ecx, 0
        again:  inc dword [{COUNTER}]
                inc ecx
                cmp dword [{STOP}], 0
                je again
                cmp dword [{COUNTER}], ecx
                sete al
                out 0xf4, al
                jmp $
    """
    guest = start(assemble(code), host, paused=True)
    for _ in range(50):
        guest.machine.vcpus.gate.resume()
        guest.counts_on(COUNTER)
        guest.machine.vcpus.gate.pause()
    guest.machine.platform.memory.write(Gpa(STOP), b"\1")
    guest.machine.vcpus.gate.resume()
    outcome = guest.ended()
    assert (outcome.ending, outcome.detail) == (Ending.EXIT_PORT, "the guest wrote to the exit port")
    assert outcome.report["exit_port"] == 1


@on_each_host
def test_guest_that_is_paused_from_the_start_does_not_begin(start: Start, host: str) -> None:
    guest = start(COUNT, host, paused=True)
    guest.stands_still(COUNTER)
    assert guest.count() == 0
    guest.machine.vcpus.gate.resume()
    guest.counts_on(COUNTER)


@on_each_host
def test_reset_of_a_paused_guest_is_made_at_once(start: Start, host: str) -> None:
    made = threading.Event()
    guest = start(COUNT, host)
    guest.machine.state.on_reset = made.set
    guest.counts_on(COUNTER)
    guest.machine.vcpus.gate.pause()
    before = guest.count()
    guest.machine.state.request_reset()
    assert made.wait(20)
    guest.stands_still(COUNTER)
    assert guest.count() == before
    assert guest.machine.state.resets == 1
    guest.machine.vcpus.gate.resume()
    guest.counts_on(COUNTER)


@on_each_host
def test_halted_guest_can_be_paused_and_only_a_reset_wakes_it(start: Start, host: str) -> None:
    """It halts at its first start and ends at its second."""
    code = f"""
                cmp byte [{COUNTER}], 0
                jne second
                inc byte [{COUNTER}]
                cli
                hlt
                jmp $
        second: mov al, 5
                out 0xf4, al
                jmp $
    """
    guest = start(assemble(code), host)
    while guest.count() == 0:
        pass
    guest.machine.vcpus.gate.pause()
    guest.machine.vcpus.gate.resume()
    assert guest.machine.state.ending is None
    guest.machine.state.request_reset()
    outcome = guest.ended()
    assert (outcome.ending, outcome.report["exit_port"]) == (Ending.EXIT_PORT, 5)


@on_each_host
def test_paused_guest_can_be_ended(start: Start, host: str) -> None:
    guest = start(COUNT, host)
    guest.machine.vcpus.gate.pause()
    guest.machine.state.end(Ending.TERMINATED)
    assert guest.ended().ending is Ending.TERMINATED
