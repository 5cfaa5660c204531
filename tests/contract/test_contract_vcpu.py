"""A vCPU on every host: ports and MMIO of every width, string instructions, stop, reset, shutdown."""

from __future__ import annotations

import struct
import threading

import pytest
from contract_hosts import END, ContractRig, HostName, on_each_host
from support.guest_rig import PROTECTED

from casemate.guests.entry import Bits
from casemate.host.exits import Interrupted, Shutdown

pytestmark = on_each_host

HOLE = 0xFE400000


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_image_runs_from_the_reset_vector(host: HostName, bits: Bits) -> None:
    with ContractRig(host, f"mov al, 0x42; out 0x80, al {END}", bits) as rig:
        assert rig.run() == Interrupted()
        assert rig.accesses == [("out", 0x80, 1, 0x42)]


def test_ports_of_every_width_reach_the_bus(host: HostName) -> None:
    code = "in al, 0x90; out 0x80, al; in ax, 0x92; out 0x82, ax; in eax, 0x94; out 0x84, eax"
    with ContractRig(host, code + END) as rig:
        rig.bus.answers.update({0x90: 0x11, 0x92: 0x2222, 0x94: 0x44444444})
        assert rig.run() == Interrupted()
        assert [entry[1:] for entry in rig.accesses] == [
            (0x90, 1, 0x11),
            (0x80, 1, 0x11),
            (0x92, 2, 0x2222),
            (0x82, 2, 0x2222),
            (0x94, 4, 0x44444444),
            (0x84, 4, 0x44444444),
        ]


def test_mmio_of_every_width_reaches_the_bus(host: HostName) -> None:
    code = f"""
        mov ebx, {HOLE}
        mov al, [rbx]; mov [rbx], al
        mov ax, [rbx + 2]; mov [rbx + 2], ax
        mov eax, [rbx + 4]; mov [rbx + 4], eax
        mov rax, [rbx + 8]; mov [rbx + 8], rax
        {END}
    """
    answers = {HOLE: 0x11, HOLE + 2: 0x2222, HOLE + 4: 0x44444444, HOLE + 8: 0x8877665544332211}
    with ContractRig(host, code, 64) as rig:
        rig.bus.answers.update(answers)
        assert rig.run() == Interrupted()
        for kind in ("load", "write"):
            accesses = [entry[1:] for entry in rig.accesses if entry[0] == kind]
            widths = {HOLE: 1, HOLE + 2: 2, HOLE + 4: 4, HOLE + 8: 8}
            assert accesses == [(place, widths[place], value) for place, value in answers.items()]


def test_string_instructions_on_ports_move_every_unit(host: HostName) -> None:
    code = f"""
        mov dx, 0x90; mov edi, 0x200000; mov ecx, 5; rep insb
        mov dx, 0x92; mov esi, 0x201000; mov ecx, 3; rep outsw
        {END}
    """
    with ContractRig(host, code) as rig:
        rig.bus.answers[0x90] = 0x33
        rig.ram.writable.view[0x201000:0x201006] = bytes(range(1, 7))
        assert rig.run() == Interrupted()
        assert rig.ram_at(0x200000, 6) == b"\x33" * 5 + b"\x00"
        outs = [entry for entry in rig.accesses if entry[0] == "out"]
        assert outs == [("out", 0x92, 2, value) for value in (0x0201, 0x0403, 0x0605)]


def test_long_string_instruction_crosses_pages(host: HostName) -> None:
    # 8 KiB from the middle of a page
    code = f"mov dx, 0x90; mov edi, 0x200800; mov ecx, 0x2000; rep insb {END}"
    with ContractRig(host, code) as rig:
        rig.bus.answers[0x90] = 0x5C
        assert rig.run() == Interrupted()
        assert rig.ram_at(0x200800, 0x2000) == b"\x5c" * 0x2000
        assert rig.ram_at(0x202800, 1) == b"\x00"


@pytest.mark.parametrize("user", [False, True], ids=["supervisor", "user"])
def test_stop_ends_a_busy_loop(host: HostName, user: bool) -> None:
    with ContractRig(host, f"jmp $ {END}", 64, user=user) as rig:
        timer = threading.Timer(0.05, rig.vcpu.stop)
        timer.start()
        assert rig.run() == Interrupted()
        timer.join()


def test_stop_before_the_run_ends_it_at_once_and_only_once(host: HostName) -> None:
    with ContractRig(host, f"out 0x80, al {END}") as rig:
        rig.vcpu.stop()
        rig.vcpu.stop()
        assert rig.run() == Interrupted()
        assert not rig.ended
        assert rig.run() == Interrupted()
        assert rig.ended


def test_wake_does_not_end_a_run(host: HostName) -> None:
    with ContractRig(host, f"out 0x80, al {END}") as rig:
        rig.bus.on_write_port[0x80] = rig.vcpu.wake
        assert rig.run() == Interrupted()
        assert rig.ended


def test_stop_in_an_access_lets_it_finish(host: HostName) -> None:
    # eax takes what the port says although the stop comes in between; so does the load
    code = f"in eax, 0x90; mov [0x200000], eax; out 0x80, al; mov eax, [{HOLE}]; mov [0x200004], eax {END}"
    with ContractRig(host, code) as rig:
        rig.bus.answers.update({0x90: 0x12345678, HOLE: 0x9ABCDEF0})
        rig.bus.on_read = rig.vcpu.stop
        while not rig.ended:
            assert rig.run() == Interrupted()
        assert rig.ram_at(0x200000, 8) == struct.pack("<II", 0x12345678, 0x9ABCDEF0)
        assert len(rig.accesses) == 3


@pytest.mark.parametrize(
    "access",
    [
        "in eax, 0x90",
        "out 0x80, eax",
        f"mov eax, [{HOLE}]",
        f"mov [{HOLE}], eax",
        "mov dx, 0x90; mov edi, 0x200000; mov ecx, 16; rep insb",
    ],
    ids=["in", "out", "load", "write", "string"],
)
def test_reset_in_an_access_starts_over(host: HostName, access: str) -> None:
    # [PROTECTED] counts starts; the stop comes in the midst of the access of the first, which then never ends
    code = f"inc dword [{PROTECTED}]; cmp dword [{PROTECTED}], 2; je again; {access}; jmp $; again: {END}"
    with ContractRig(host, code) as rig:
        rig.bus.on_read = rig.bus.on_write = rig.bus.on_write_port[0x80] = rig.vcpu.stop
        assert rig.run() == Interrupted()
        assert not rig.ended
        rig.bus.on_read = rig.bus.on_write = None
        rig.vcpu.reset()
        assert rig.vcpu.rip() == 0xFFF0
        assert rig.run() == Interrupted()
        assert rig.ended
        assert rig.ram_at(PROTECTED, 1) == b"\x02"


@pytest.mark.parametrize("bits", [32, 64])
def test_reset_leaves_protected_and_long_mode(host: HostName, bits: Bits) -> None:
    code = f"out 0x80, al {END}"
    with ContractRig(host, code, bits) as rig:
        for start in range(1, 4):
            assert rig.run() == Interrupted()
            assert len(rig.accesses) == start
            rig.vcpu.reset()


def test_fault_without_a_handler_is_a_shutdown(host: HostName) -> None:
    # The table that is loaded is empty.
    with ContractRig(host, f"lidt [0x1000]; ud2 {END}", 64) as rig:
        assert isinstance(rig.run(), Shutdown)
        assert not rig.ended


def test_rip_can_be_set(host: HostName) -> None:
    with ContractRig(host, f"out 0x80, al; jmp $; out 0x81, al {END}") as rig:
        rig.bus.on_write_port[0x80] = rig.vcpu.stop
        assert rig.run() == Interrupted()
        rip = rig.vcpu.rip()
        assert rip is not None
        rig.vcpu.set_rip(rip + 2)
        assert rig.run() == Interrupted()
        assert [entry[1] for entry in rig.accesses] == [0x80, 0x81]
