"""When a CPU takes interrupts, and what its local APIC does, on every host.

A handler traces its vector, so a trace is the order in which things happened.
"""

from __future__ import annotations

import pytest
from contract_hosts import HostName, on_each_host
from support.interrupt_rig import (
    EOI,
    ESR,
    ICR,
    ICR_HIGH,
    ID,
    IOREGSEL,
    IOWIN,
    IRR,
    LINT0,
    LVT_ERROR,
    LVT_TIMER,
    PPR,
    SVR,
    TIMER_DIVIDE,
    TIMER_INITIAL,
    TO_SELF,
    TPR,
    InterruptRig,
    offers_x2apic,
)

pytestmark = on_each_host


def tells(vector: int, more: str = "") -> str:
    """A handler that traces its vector, does ``more``, and ends the interrupt."""
    return f"push eax; mov eax, {vector}; out 0x80, eax; {more} mov dword [{EOI}], 0; pop eax; iretd"


def ipi(vector: int) -> str:
    return f"mov dword [{ICR}], {TO_SELF | vector}; "


TRACE_RIP = "mov eax, [esp]; out 0x80, eax; "
TRACE_EBX = "mov eax, ebx; out 0x80, eax; "


def test_self_ipi_is_taken_before_the_next_instruction_in_a_loop_too(host: HostName) -> None:
    code = f"sti; mov ecx, 5; again: xor ebx, ebx; nop; {ipi(0x40)} inc ebx; dec ecx; jnz again"
    with InterruptRig(host, code, {0x40: TRACE_EBX + f"mov dword [{EOI}], 0; iretd"}) as rig:
        assert rig.trace() == [0] * 5


def test_interrupt_is_taken_in_a_window_of_one_instruction(host: HostName) -> None:
    code = f"{ipi(0x40)} mov eax, 1; out 0x80, eax; sti; nop; cli; mov eax, 2; out 0x80, eax"
    with InterruptRig(host, code, {0x40: tells(0x40)}) as rig:
        assert rig.trace() == [1, 0x40, 2]


def test_interrupt_is_not_taken_in_the_shadow_of_sti(host: HostName) -> None:
    code = f"{ipi(0x40)} sti; cli; mov eax, 1; out 0x80, eax; sti; nop"
    with InterruptRig(host, code, {0x40: tells(0x40)}) as rig:
        assert rig.trace() == [1, 0x40]


def test_popf_has_no_shadow(host: HostName) -> None:
    code = f"{ipi(0x40)} pushfd; or dword [esp], 0x200; xor ebx, ebx; popfd; inc ebx"
    with InterruptRig(host, code, {0x40: TRACE_EBX + f"mov dword [{EOI}], 0; iretd"}) as rig:
        assert rig.trace() == [0]


def test_halt_behind_sti_wakes_for_what_waits_already(host: HostName) -> None:
    code = f"{ipi(0x40)} sti; hlt; mov eax, 1; out 0x80, eax"
    with InterruptRig(host, code, {0x40: tells(0x40)}) as rig:
        assert rig.trace() == [0x40, 1]


def test_lower_task_priority_lets_an_interrupt_through_at_once(host: HostName) -> None:
    code = f"""
        sti; mov dword [{TPR}], 0x50; {ipi(0x40)} mov eax, 1; out 0x80, eax
        mov eax, [{PPR}]; out 0x80, eax
        xor ebx, ebx; mov dword [{TPR}], 0x3f; inc ebx
    """
    with InterruptRig(host, code, {0x40: TRACE_EBX + f"mov dword [{EOI}], 0; iretd"}) as rig:
        assert rig.trace() == [1, 0x50, 0]


def test_cr8_is_the_task_priority(host: HostName) -> None:
    code = f"""
        mov r8d, {TPR}; mov r9d, {ICR}
        mov eax, 5; mov cr8, rax
        mov eax, [r8]; out 0x80, eax
        mov dword [r8], 0x7f
        mov rax, cr8; out 0x80, eax
        sti; mov dword [r9], {TO_SELF | 0x60}; mov eax, 1; out 0x80, eax
        xor eax, eax; xor ebx, ebx; mov cr8, rax; inc ebx
    """
    handler = "mov eax, ebx; out 0x80, eax; mov dword [r8 + 0x30], 0; iretq"
    with InterruptRig(host, code, {0x60: handler}, 64) as rig:
        assert rig.trace() == [0x50, 7, 1, 0]


def test_cr8_takes_four_bits(host: HostName) -> None:
    handler = "add rsp, 8; mov eax, 13; out 0x80, eax; mov eax, 3; iretq"
    with InterruptRig(host, "mov eax, 0x10; mov cr8, rax; out 0x80, eax", {13: handler}, 64) as rig:
        assert rig.trace() == [13, 3]


def test_interrupts_nest_by_class_and_end_in_order(host: HostName) -> None:
    outer = f"sti; {ipi(0x30)} {ipi(0x45)} {ipi(0x50)} cli; mov eax, 1; out 0x80, eax;"
    with InterruptRig(
        host,
        f"sti; {ipi(0x40)} nop; nop",
        {0x40: tells(0x40, outer), 0x30: tells(0x30), 0x45: tells(0x45), 0x50: tells(0x50)},
    ) as rig:
        assert rig.trace() == [0x40, 0x50, 1, 0x45, 0x30]


def test_local_errors_are_collected_and_interrupt_once(host: HostName) -> None:
    if host == "kvm":
        pytest.skip("the kernel reports no illegal vectors")
    code = f"""
        sti; mov dword [{LVT_ERROR}], 0x5e
        {ipi(3)} nop
        mov dword [{ESR}], 0; mov eax, [{ESR}]; and eax, 0x20; out 0x80, eax
    """
    with InterruptRig(host, code, {0x5E: tells(0x5E)}) as rig:
        assert rig.trace()[-1] == 0x20


@pytest.mark.parametrize(
    ("high", "low", "arrives"),
    [
        (0, 0x4040, True),
        (1, 0x4040, False),
        (0xFF, 0x4040, True),
        (0, 0x84040, True),
        (0, 0xC4040, False),
        (0x04, 0x4840, True),
        (0x08, 0x4840, False),
        (0x04, 0x4940, True),
    ],
    ids=["self", "other", "all", "all-and-self", "all-others", "logical", "logical-other", "lowest-priority"],
)
def test_ipi_goes_to_its_destination(host: HostName, high: int, low: int, arrives: bool) -> None:
    code = f"""
        mov dword [{SVR - 0x20}], 0x4000000      # LDR, DFR is flat
        mov dword [{ICR_HIGH}], {high << 24}; mov dword [{ICR}], {low}
        sti; nop; nop; cli
    """
    with InterruptRig(host, code, {0x40: tells(0x40)}) as rig:
        assert rig.trace() == ([0x40] if arrives else [])


@pytest.mark.parametrize(("destination", "arrives"), [(0x21, True), (0x31, False), (0x22, False)])
def test_logical_destination_of_a_cluster(host: HostName, destination: int, arrives: bool) -> None:
    code = f"""
        mov dword [{SVR - 0x10}], 0x0fffffff; mov dword [{SVR - 0x20}], 0x21000000
        mov dword [{ICR_HIGH}], {destination << 24}; mov dword [{ICR}], 0x4840
        sti; nop; nop; cli
    """
    with InterruptRig(host, code, {0x40: tells(0x40)}) as rig:
        assert rig.trace() == ([0x40] if arrives else [])


# NMI.

NMI = f"mov dword [{ICR_HIGH}], 0; mov dword [{ICR}], 0x4400; "
"""To APIC 0, physically."""


def test_nmi_comes_whatever_the_interrupt_flag_says(host: HostName) -> None:
    code = f"xor ebx, ebx; {NMI} inc ebx; {TRACE_EBX}"
    with InterruptRig(host, code, {2: "mov eax, 2; out 0x80, eax; iretd"}) as rig:
        assert rig.trace() == [2, 1]


def test_nmi_is_blocked_until_iret_and_one_is_kept(host: HostName) -> None:
    # The handler sends itself two more, the first time.
    handler = f"""
        inc ebx; mov eax, ebx; out 0x80, eax
        cmp ebx, 1; jne done
        {NMI} {NMI} mov eax, 0x55; out 0x80, eax
        done: iretd
    """
    with InterruptRig(
        host, f"xor ebx, ebx; {NMI} nop; nop; mov eax, 0x99; out 0x80, eax", {2: handler}
    ) as rig:
        assert rig.trace() == [1, 0x55, 2, 0x99]


def test_ipi_to_nobody_is_no_nmi(host: HostName) -> None:
    code = f"mov dword [{ICR_HIGH}], 0x5000000; mov dword [{ICR}], 0x4400; nop; mov eax, 1; out 0x80, eax"
    with InterruptRig(host, code, {2: "mov eax, 2; out 0x80, eax; iretd"}) as rig:
        assert rig.trace() == [1]


# 8259s and I/O APIC.

START_8259 = """
    mov al, 0x11; out 0x20, al; mov al, 0x20; out 0x21, al; mov al, 4; out 0x21, al; mov al, 1; out 0x21, al
    mov al, 0xff; out 0x21, al
"""
NO_8259 = f"mov dword [{LINT0}], 0x10000;"
START_8254 = "mov al, 0x30; out 0x43, al; mov al, 2; out 0x40, al; mov al, 0; out 0x40, al;"
"""Terminal count after two ticks: the output goes up, and stays."""


def route(pin: int, entry: int) -> str:
    return f"""
        mov dword [{IOREGSEL}], {0x11 + 2 * pin}; mov dword [{IOWIN}], 0
        mov dword [{IOREGSEL}], {0x10 + 2 * pin}; mov dword [{IOWIN}], {entry}
    """


def test_unmasking_a_request_of_the_8259_lets_it_through_at_once(host: HostName) -> None:
    code = f"""
        mov dword [{LINT0}], 0x700; {START_8259} {START_8254}
        wait: mov al, 0x0a; out 0x20, al; in al, 0x20; test al, 1; jz wait
        sti; xor ebx, ebx; mov al, 0xfe; out 0x21, al; inc ebx; cli
    """
    with InterruptRig(host, code, {0x20: TRACE_EBX + "mov al, 0x20; out 0x20, al; iretd"}) as rig:
        assert rig.trace() == [0]


def test_timer_comes_by_the_io_apic(host: HostName) -> None:
    code = f"{NO_8259} {route(2, 0x40)} xor ebx, ebx; {START_8254} sti; wait: test ebx, ebx; jz wait; cli"
    with InterruptRig(host, code, {0x40: tells(0x40, "inc ebx;")}) as rig:
        assert rig.trace() == [0x40]


def test_io_apic_sends_nmis(host: HostName) -> None:
    code = f"{NO_8259} {route(2, 0x400)} xor ebx, ebx; {START_8254} wait: test ebx, ebx; jz wait"
    with InterruptRig(host, code, {2: "inc ebx; mov eax, 2; out 0x80, eax; iretd"}) as rig:
        assert rig.trace() == [2]


# The timer.


@pytest.mark.parametrize("halts", [False, True])
def test_one_shot_timer_interrupts_once(host: HostName, halts: bool) -> None:
    code = f"""
        mov dword [{LVT_TIMER}], 0x40; mov dword [{TIMER_DIVIDE}], 0xb
        xor ebx, ebx; mov dword [{TIMER_INITIAL}], 1000000
        sti; wait: {"hlt;" if halts else ""} test ebx, ebx; jz wait; cli
        mov eax, [{TIMER_INITIAL + 0x10}]; out 0x80, eax
    """
    with InterruptRig(host, code, {0x40: tells(0x40, "inc ebx;")}) as rig:
        assert rig.trace() == [0x40, 0]


def test_expired_timer_shows_as_a_request_while_interrupts_are_off(host: HostName) -> None:
    code = f"""
        mov dword [{LVT_TIMER}], 0x40; mov dword [{TIMER_DIVIDE}], 0xb; mov dword [{TIMER_INITIAL}], 100000
        wait: mov eax, [{IRR + 0x20}]; test eax, eax; jz wait
        out 0x80, eax; sti; nop; cli
    """
    with InterruptRig(host, code, {0x40: tells(0x40)}) as rig:
        assert rig.trace() == [1, 0x40]


def test_masked_timer_does_not_interrupt(host: HostName) -> None:
    if host == "kvm":
        pytest.skip("the kernel looks at the mask when it comes to deliver what expired")
    code = f"""
        mov dword [{LVT_TIMER}], 0x10040; mov dword [{TIMER_DIVIDE}], 0xb; mov dword [{TIMER_INITIAL}], 1000
        wait: mov eax, [{TIMER_INITIAL + 0x10}]; test eax, eax; jnz wait
        mov dword [{LVT_TIMER}], 0x40; sti; nop; cli
    """
    with InterruptRig(host, code, {0x40: tells(0x40)}) as rig:
        assert rig.trace() == []


# Where the APIC is, and how it is reached.

BASE = "mov ecx, 0x1b; rdmsr;"
COUNT_GP = "add esp, 4; add dword [esp], 2; mov eax, 13; out 0x80, eax; iretd"
"""Steps over RDMSR and WRMSR."""
ENTER_X2APIC = f"{BASE} or eax, 0xc00; wrmsr;"


def test_disabled_apic_is_not_there_and_comes_back_as_it_was(host: HostName) -> None:
    code = f"""
        mov dword [{TPR}], 0x30
        {BASE} and eax, 0xfffff7ff; wrmsr
        mov eax, [{TPR}]; out 0x80, eax; mov dword [{TPR}], 0x50
        {BASE} or eax, 0x800; wrmsr
        mov eax, [{TPR}]; out 0x80, eax
    """
    with InterruptRig(host, code, {}) as rig:
        assert rig.trace() == [0xFFFFFFFF, 0x30]


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ("or eax, 1", True),
        ("or eax, 0x200", True),
        ("or edx, 0x80000000", True),
        ("and eax, 0xfffff7ff; or eax, 0x400", True),
        ("and eax, 0xfffffeff", False),
    ],
    ids=["reserved-0", "reserved-9", "reserved-63", "x2apic-only", "not-the-bsp"],
)
def test_base_refuses_reserved_bits_and_modes(host: HostName, change: str, refused: bool) -> None:
    with InterruptRig(host, f"{BASE} {change}; wrmsr", {13: COUNT_GP}) as rig:
        assert rig.trace() == ([13] if refused else [])


def test_relocated_apic_answers_where_it_is(host: HostName) -> None:
    code = f"""
        {BASE} and eax, 0xfff; or eax, 0xfed50000; wrmsr
        mov eax, [{0xFED50000 + 0x30}]; and eax, 0xff; out 0x80, eax
        sti; mov dword [{0xFED50000 + 0x300}], {TO_SELF | 0x40}; nop; cli
    """
    handler = f"mov eax, 0x40; out 0x80, eax; mov dword [{0xFED50000 + 0xB0}], 0; iretd"
    with InterruptRig(host, code, {0x40: handler}) as rig:
        assert rig.trace() == [0x14, 0x40]


def with_x2apic(host: HostName, code: str, handlers: dict[int, str]) -> InterruptRig:
    if host == "kvm" and not offers_x2apic():
        pytest.skip("the guest's CPUID does not offer x2APIC there")
    return InterruptRig(host, ENTER_X2APIC + code, handlers)


def test_x2apic_sends_by_one_register(host: HostName) -> None:
    code = "sti; mov ecx, 0x830; xor edx, edx; mov eax, 0x4040; xor ebx, ebx; wrmsr; inc ebx; cli"
    handler = TRACE_EBX + "mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr; iretd"
    with with_x2apic(host, code, {0x40: handler}) as rig:
        assert rig.trace() == [0]


def test_x2apic_self_ipi_register(host: HostName) -> None:
    code = "sti; mov ecx, 0x83f; xor edx, edx; mov eax, 0x40; wrmsr; nop; cli"
    handler = "mov eax, 0x40; out 0x80, eax; mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr; iretd"
    with with_x2apic(host, code, {0x40: handler}) as rig:
        assert rig.trace() == [0x40]


@pytest.mark.parametrize(
    ("register", "value", "instruction"),
    [
        (0x802, 0, "wrmsr"),
        (0x803, 0, "wrmsr"),
        (0x808, 0x100, "wrmsr"),
        (0x80B, 1, "wrmsr"),
        (0x80B, 0, "rdmsr"),
        (0x80E, 0, "rdmsr"),
        (0x828, 1, "wrmsr"),
        (0x831, 0, "rdmsr"),
        (0x83F, 0, "rdmsr"),
        (0x850, 0, "rdmsr"),
    ],
)
def test_x2apic_refuses_what_is_reserved(host: HostName, register: int, value: int, instruction: str) -> None:
    code = f"mov ecx, {register}; xor edx, edx; mov eax, {value}; {instruction}"
    with with_x2apic(host, code, {13: COUNT_GP}) as rig:
        assert rig.trace() == [13]


def test_x2apic_registers_are_refused_in_xapic_mode(host: HostName) -> None:
    with InterruptRig(host, "mov ecx, 0x802; rdmsr", {13: COUNT_GP}) as rig:
        assert rig.trace() == [13]


def test_x2apic_does_not_go_back_to_xapic_but_by_off(host: HostName) -> None:
    code = f"""
        {BASE} and eax, 0xfffffbff; wrmsr                # refused
        {BASE} and eax, 0xfffff3ff; wrmsr
        {BASE} or eax, 0x800; wrmsr
        mov eax, [{ID}]; out 0x80, eax
    """
    with with_x2apic(host, code, {13: COUNT_GP}) as rig:
        assert rig.trace() == [13, 0]
