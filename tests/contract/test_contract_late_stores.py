"""Writes that may reach the bus late, on every host: in order, before what follows them, at the end of a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from contract_hosts import END, PAGE, ContractRig, HostName, on_each_host
from support.guest_rig import PROTECTED

from casemate.address import Gpa, GuestRange
from casemate.host.exits import Interrupted
from casemate.host.kvm.coalesced import ENTRIES
from casemate.host.kvm.vcpu import KvmVcpu

pytestmark = on_each_host

WHERE = GuestRange(Gpa(PROTECTED), PAGE)
DONE = 0x2000
TELL = f"mov byte [{DONE}], 1;"


def stores(count: int) -> str:
    """Write the low byte of ``count``, ``count`` - 1, ... to PROTECTED and up."""
    return f"mov edi, {PROTECTED}; mov ecx, {count}; store{count}: mov [edi], cl; inc edi; loop store{count};"


def expected(count: int) -> list[tuple[str, int, int, int]]:
    return [("write", PROTECTED + i, 1, count - i & 0xFF) for i in range(count)]


class LateRig(ContractRig):
    """The spare page has no slot, and writes to it may be late; ``runs`` counts KVM_RUN."""

    def __init__(self, host: HostName, code: str) -> None:
        super().__init__(host, code)
        self.vm.delete_slot(3)
        self.vm.coalesce_mmio(WHERE, enabled=True)

    @contextmanager
    def when_done(self, action: Callable[[], None]) -> Iterator[None]:
        """Call ``action`` on a thread of its own as soon as the guest has told that it made its writes."""
        over = threading.Event()

        def watch() -> None:
            while not (told := self.ram_at(DONE, 1) == b"\x01") and not over.wait(0.001):
                pass
            if told:
                action()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("count", [1, ENTRIES - 1, ENTRIES, 3 * ENTRIES + 7])
def test_late_stores_are_whole_and_in_order(host: HostName, count: int) -> None:
    with LateRig(host, f"{stores(count)} {END}") as rig:
        assert rig.run() == Interrupted()
        assert rig.accesses == expected(count)
        # Linux 6.1 takes the ring for full when it is half full, and begins at its start.
        if isinstance(rig.vcpu, KvmVcpu):
            assert rig.vcpu.runs <= 2 + 2 * count // ENTRIES


def test_load_comes_after_the_stores_before_it(host: HostName) -> None:
    with LateRig(host, f"{stores(5)} mov al, [{PROTECTED + 1}]; {stores(3)} out 0x80, al {END}") as rig:
        rig.bus.answers[PROTECTED + 1] = 0x42
        assert rig.run() == Interrupted()
        loaded = ("load", PROTECTED + 1, 1, 0x42)
        assert rig.accesses == [*expected(5), loaded, *expected(3), ("out", 0x80, 1, 0x42)]


def test_late_stores_of_every_width_are_whole(host: HostName) -> None:
    code = f"""
        mov eax, 0x11223344
        mov [{PROTECTED}], al
        mov [{PROTECTED + 2}], ax
        mov [{PROTECTED + 4}], eax
        mov [{PROTECTED + 0xFFE}], eax  # reaches out of the range
        {END}
    """
    with LateRig(host, code) as rig:
        assert rig.run() == Interrupted()
        taken = [
            (gpa + i, value >> 8 * i & 0xFF) for _, gpa, size, value in rig.accesses for i in range(size)
        ]
        offsets = (0, 2, 3, 4, 5, 6, 7, 0xFFE, 0xFFF, 0x1000, 0x1001)
        values = bytes.fromhex("44 4433 44332211 44332211")
        assert taken == [(PROTECTED + offset, value) for offset, value in zip(offsets, values, strict=True)]


def test_stop_and_reset_find_nothing_undelivered(host: HostName) -> None:
    with LateRig(host, f"{stores(7)} {TELL} jmp $") as rig:
        with rig.when_done(rig.vcpu.stop):
            assert rig.run() == Interrupted()
        assert rig.accesses == expected(7)
        rig.vcpu.reset()
        rig.ram.writable.view[DONE] = 0
        with rig.when_done(rig.vcpu.stop):
            assert rig.run() == Interrupted()
        assert rig.accesses == expected(7) * 2


def test_stores_of_a_guest_without_exits_are_delivered_when_asked_for(host: HostName) -> None:
    with LateRig(host, f"{stores(7)} {TELL} jmp $") as rig:

        def stop_at_the_last() -> None:
            if len(rig.accesses) == 7:
                rig.vcpu.stop()

        rig.bus.on_write = stop_at_the_last
        with rig.when_done(rig.vm.deliver_coalesced):
            assert rig.run() == Interrupted()
        assert rig.accesses == expected(7)


def test_only_late_stores_say_so(host: HostName) -> None:
    # a write to the range, then one to where no slot is
    with LateRig(host, f"{stores(1)} mov [0xfe400000], eax {END}") as rig:
        seen: list[bool] = []
        rig.bus.on_write = lambda: seen.append(rig.vcpu.write_was_coalesced)
        assert rig.run() == Interrupted()
        assert seen == [host == "kvm", False]


def test_slot_that_returns_takes_stores_at_once(host: HostName) -> None:
    with LateRig(host, f"{stores(3)} out 0x80, al; {stores(4)} out 0x81, al; {stores(2)} {END}") as rig:

        def show_memory() -> None:
            rig.vm.coalesce_mmio(WHERE, enabled=False)
            rig.add(3, PROTECTED, PAGE, rig.protected_hva)

        def hide_memory() -> None:
            rig.vm.delete_slot(3)
            rig.vm.coalesce_mmio(WHERE, enabled=True)

        rig.bus.on_write_port.update({0x80: show_memory, 0x81: hide_memory})
        assert rig.run() == Interrupted()
        stored = [entry for entry in rig.accesses if entry[0] == "write"]
        assert stored == expected(3) + expected(2)
        assert rig.ram_at(PROTECTED, 5) == b"\x04\x03\x02\x01\x00"
