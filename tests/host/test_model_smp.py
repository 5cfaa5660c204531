"""Several vCPUs on the modelled host: start-up, messages, time, and what one sees of another's stores."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.assembler import assemble
from support.litmus import KINDS
from support.second_vcpu import INIT, LAPIC, NMI, START_UP, TRAMPOLINE, start_second

from casemate.guests.actions import tell
from casemate.guests.entry import make_image
from casemate.host.model.cpu.cpuid import CpuidOfMany
from casemate.host.model.cpu.processor import everything
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.machine.boot import boot
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.spec import MachineSpec
from casemate.memory.protection import OnWrite

MIB = 1 << 20
FLAG, OTHER = 0x9000, 0x9010
SPIN = assemble("jmp $")


def run(folder: Path, code: bytes, vcpus: int = 2, timeout: float = 60) -> Outcome:
    (folder / "bios.bin").write_bytes(make_image(code, 32))
    spec = MachineSpec(bios=folder / "bios.bin", memory=4 * MIB, vcpus=vcpus)
    return boot(spec, timeout=timeout, hypervisor=ModelHypervisor)


def send(command: int, to: int = 1) -> str:
    return f"mov dword [{LAPIC + 0x310}], {to << 24}; mov dword [{LAPIC + 0x300}], {command};"


def wait_for(value: int, place: int = FLAG) -> str:
    return f"wait{value}: pause; cmp dword [{place}], {value}; jne wait{value};"


@pytest.mark.parametrize("kind", KINDS)
def test_two_vcpus_see_of_each_other_only_what_x86_allows(kind: str, tmp_path: Path) -> None:
    outcome = run(tmp_path, KINDS[kind](2000))
    assert outcome.ending is Ending.EXIT_PORT, outcome.detail
    assert outcome.report["exit_port"] == 0, "rounds that no processor shows"


def test_every_vcpu_of_sixteen_is_started_and_knows_its_number(tmp_path: Path) -> None:
    """All others are started by one broadcast; each adds its APIC ID, which CPUID says, to a sum."""
    second = f"""
                mov eax, 1
                cpuid
                shr ebx, 24
                lock add [{FLAG}], ebx
                lock inc dword [{OTHER}]
        idle:   hlt
                jmp idle
    """
    broadcast = assemble(f"""
        mov dword [{LAPIC + 0x300}], {0xC0000 | INIT}
        mov dword [{LAPIC + 0x300}], {0xC0000 | START_UP | TRAMPOLINE >> 12}
        {wait_for(15, OTHER)}
        mov al, [{FLAG}]
        out 0xf4, al
        jmp $
    """)
    outcome = run(tmp_path, start_second(second) + broadcast, vcpus=16)
    assert outcome.report["exit_port"] == sum(range(16))
    assert {vcpu["starts"] for vcpu in outcome.report["vcpus"]} <= {1, 2}


def test_a_start_up_interrupt_is_for_a_vcpu_that_waits_for_one(tmp_path: Path) -> None:
    """The first one starts it; another one, without INIT, is lost; after INIT it starts again."""
    second = f"lock inc dword [{FLAG}]; idle: hlt; jmp idle"
    first = (
        wait_for(1)
        + send(START_UP | TRAMPOLINE >> 12)
        + "mov ecx, 3000; rest: pause; dec ecx; jnz rest;"
        + f"cmp dword [{FLAG}], 1; jne bad;"
        + send(INIT)
        + send(START_UP | TRAMPOLINE >> 12)
        + wait_for(2)
        + "mov al, 7; out 0xf4, al; bad: mov al, 9; out 0xf4, al; jmp $"
    )
    outcome = run(tmp_path, start_second(second) + assemble(first))
    assert outcome.report["exit_port"] == 7
    assert [vcpu["starts"] for vcpu in outcome.report["vcpus"]] == [1, 2]


def test_nmi_wakes_a_vcpu_that_halted_with_its_interrupts_off(tmp_path: Path) -> None:
    second = f"""
                mov dword [8], handler + {TRAMPOLINE << 12}
                mov dword [{FLAG}], 1
        idle:   cli
                hlt
                jmp idle
        handler: inc dword [{FLAG}]
                iret
    """
    first = wait_for(1) + send(NMI) + wait_for(2) + send(NMI) + wait_for(3) + "mov al, 5; out 0xf4, al; jmp $"
    outcome = run(tmp_path, start_second(second) + assemble(first))
    assert outcome.report["exit_port"] == 5
    assert outcome.report["vcpus"][1]["activity"] == "stopped"


def test_all_vcpus_halted_for_good_are_a_guest_that_nothing_wakes(tmp_path: Path) -> None:
    outcome = run(tmp_path, start_second("cli; hlt; jmp $") + assemble("cli; hlt; jmp $"), timeout=0.5)
    assert outcome.ending is Ending.TIMEOUT
    assert {vcpu["activity"] for vcpu in outcome.report["vcpus"]} == {"stopped"}


def test_one_vcpu_goes_on_while_another_spins_without_pause(tmp_path: Path) -> None:
    second = f"lock inc dword [{FLAG}]; jmp $"
    first = f"look: cmp dword [{FLAG}], 1; jne look; mov al, 3; out 0xf4, al; jmp $"
    assert run(tmp_path, start_second(second) + assemble(first)).report["exit_port"] == 3


def test_time_stamp_counters_agree(tmp_path: Path) -> None:
    """Each waits for the other's turn, and its counter is never behind what the other one read before."""
    second = f"""
                mov ecx, 200
        next:   pause
                rdtsc
                cmp eax, [{OTHER}]
                js late
                mov [{OTHER}], eax
                loop next
        late:   mov [{FLAG}], ecx
                mov dword [{FLAG + 4}], 1
        idle:   hlt
                jmp idle
    """
    first = f"""
        look:   pause
                rdtsc
                mov [{OTHER}], eax
                cmp dword [{FLAG + 4}], 1
                jne look
                mov al, [{FLAG}]
                out 0xf4, al
                jmp $
    """
    start = assemble(f"rdtsc; mov [{OTHER}], eax")
    assert run(tmp_path, start + start_second(second) + assemble(first)).report["exit_port"] == 0


def test_a_violation_names_the_vcpu_that_made_it(tmp_path: Path) -> None:
    code = make_image(start_second("mov ax, 0xf000; mov ds, ax; mov byte [0], 1; jmp $") + SPIN, 32)
    (tmp_path / "code.fd").write_bytes(code)
    spec = MachineSpec(code=tmp_path / "code.fd", memory=4 * MIB, vcpus=2, on_write=OnWrite.KILL)
    outcome = boot(spec, timeout=60, hypervisor=ModelHypervisor)
    assert outcome.ending is Ending.VIOLATION, outcome.detail
    assert outcome.report["writes"]["events"][0]["vcpu"] == 1


def test_cpuid_of_one_of_many_says_which_and_how_many() -> None:
    third = CpuidOfMany(everything(), 2, 3)
    features, threads, cores = third.answer(1, 0), third.answer(0xB, 0), third.answer(0xB, 1)
    assert (features.ebx >> 24, features.ebx >> 16 & 0xFF, features.edx >> 28 & 1) == (2, 4, 1)
    assert tuple(threads) == (0, 1, 0x100, 2)
    assert tuple(cores) == (2, 3, 0x201, 2)
    assert third.answer(0x80000008, 0).ecx == 2 << 12 | 2
    assert third.answer(0x8000001E, 0).eax == 2
    alone = everything().answer(1, 0)
    assert (alone.ebx >> 16 & 0xFF, alone.edx >> 28 & 1) == (1, 0)


def test_a_guest_with_one_vcpu_is_told_of_one(tmp_path: Path) -> None:
    outcome = run(tmp_path, tell(1), vcpus=1)
    assert [vcpu["number"] for vcpu in outcome.report["vcpus"]] == [0]
