"""Interrupts that only the modelled controllers show: INIT, ExtINT by the I/O APIC, the serial port, the TSC."""

from __future__ import annotations

import pytest
from support.assembler import assemble
from support.guest_rig import ModelRig
from support.interrupt_rig import (
    EOI,
    ICR,
    ICR_HIGH,
    IOAPIC_EOI,
    IOREGSEL,
    IOWIN,
    LINT0,
    LVT_TIMER,
    SVR,
    TPR,
    InterruptRig,
)

from casemate.address import LAPIC_BASE
from casemate.host.exits import Hlt

TRACE_EBX = "mov eax, ebx; out 0x80, eax; "
ALREADY = 0x5000
"""A word of RAM that is not 0 the second time."""
START_8259 = """
    mov al, 0x11; out 0x20, al; mov al, 0x20; out 0x21, al; mov al, 4; out 0x21, al; mov al, 1; out 0x21, al
    mov al, 0xef; out 0x21, al
"""
"""Only the serial port's interrupt is let through."""
UART_ON = "mov edx, 0x3fc; mov al, 8; out dx, al; mov edx, 0x3f9; mov al, 2;"
END_8259 = (
    "push eax; push edx; mov edx, 0x3fa; in al, dx; mov al, 0x20; out 0x20, al; pop edx; pop eax; iretd"
)


def test_init_starts_the_cpu_anew_and_its_apic_too() -> None:
    code = f"""
        mov eax, [{SVR}]; out 0x80, eax; mov eax, [{TPR}]; out 0x80, eax
        cmp dword [{ALREADY}], 0; jne done
        mov dword [{ALREADY}], 1; mov dword [{TPR}], 0x20
        mov dword [{ICR_HIGH}], 0; mov dword [{ICR}], 0x4500
        again: jmp again
        done:
    """
    with InterruptRig("model", code, {}) as rig:
        assert rig.trace() == [0x1FF, 0, 0x1FF, 0]


@pytest.mark.parametrize("command", [0x4600, 0x8500], ids=["start-up", "init-deassert"])
def test_a_running_cpu_takes_no_notice_of(command: int) -> None:
    code = f"mov dword [{ICR_HIGH}], 0; mov dword [{ICR}], {command}; mov eax, 1; out 0x80, eax"
    with InterruptRig("model", code, {}) as rig:
        assert rig.trace() == [1]


def test_8259_gets_through_by_the_io_apic_when_lint0_is_masked() -> None:
    code = f"""
        mov dword [{LINT0}], 0x10000; {START_8259} {UART_ON} out dx, al
        sti; nop; cli; mov eax, 1; out 0x80, eax
        mov dword [{IOREGSEL}], 0x11; mov dword [{IOWIN}], 0; mov dword [{IOREGSEL}], 0x10
        sti; xor ebx, ebx; mov dword [{IOWIN}], 0x700; inc ebx; cli
    """
    with InterruptRig("model", code, {0x24: TRACE_EBX + END_8259}) as rig:
        assert rig.trace() == [1, 0]


def test_io_apic_sends_init() -> None:
    code = f"""
        mov dword [{LINT0}], 0x10000
        cmp dword [{ALREADY}], 0; jne done
        mov dword [{ALREADY}], 1
        mov dword [{IOREGSEL}], 0x19; mov dword [{IOWIN}], 0
        mov dword [{IOREGSEL}], 0x18; mov dword [{IOWIN}], 0x500
        {UART_ON} out dx, al
        again: jmp again
        done: mov eax, 1; out 0x80, eax
    """
    with InterruptRig("model", code, {}) as rig:
        assert rig.trace() == [1]


def test_serial_port_interrupts_before_the_next_instruction() -> None:
    code = f"mov dword [{LINT0}], 0x700; {START_8259} {UART_ON} sti; xor ebx, ebx; out dx, al; inc ebx; cli"
    with InterruptRig("model", code, {0x24: TRACE_EBX + END_8259}) as rig:
        assert rig.trace() == [0]


def test_serial_port_asks_for_more_when_what_it_has_could_have_left() -> None:
    """Each of 20 bytes comes by an interrupt of its own, without FIFOs."""
    handler = """
        push eax; push edx; mov edx, 0x3fa; in al, dx
        cmp ebx, 20; je done
        inc ebx; mov al, 0x61; mov edx, 0x3f8; out dx, al
        done: mov al, 0x20; out 0x20, al; pop edx; pop eax; iretd
    """
    code = f"""
        mov dword [{LINT0}], 0x700; {START_8259} {UART_ON} xor ebx, ebx; sti; out dx, al
        wait: cmp ebx, 20; jne wait; cli
    """
    with InterruptRig("model", code, {0x24: handler}) as rig:
        rig.trace()
        assert rig.pc.printed == b"a" * 20


EDGE_OR_LEVEL = {"broadcast": (0x1FF, ""), "suppressed": (0x11FF, f"mov dword [{IOAPIC_EOI}], 0x40;")}


@pytest.mark.parametrize("kind", EDGE_OR_LEVEL)
def test_level_interrupt_comes_again_after_its_end(kind: str) -> None:
    """The serial port holds its line; the third handler quiets it."""
    svr, end = EDGE_OR_LEVEL[kind]
    handler = f"""
        inc ebx; {TRACE_EBX}
        mov eax, ecx; out 0x80, eax
        cmp ebx, 3; jne done
        xor eax, eax; mov edx, 0x3f9; out dx, al
        done: mov dword [{EOI}], 0
        mov eax, 0x99; out 0x80, eax
        {end} iretd
    """
    code = f"""
        mov dword [{LINT0}], 0x10000; mov dword [{SVR}], {svr}; mov eax, [{SVR}]; mov ecx, eax
        mov dword [{IOREGSEL}], 0x19; mov dword [{IOWIN}], 0
        mov dword [{IOREGSEL}], 0x18; mov dword [{IOWIN}], 0x8040
        {UART_ON} xor ebx, ebx; sti; out dx, al
        wait: cmp ebx, 3; jne wait; nop; cli
    """
    with InterruptRig("model", code, {0x40: handler}) as rig:
        assert rig.trace() == [1, svr, 0x99, 2, svr, 0x99, 3, svr, 0x99]


def test_suppressed_end_leaves_the_io_apic_waiting() -> None:
    handler = f"inc ebx; {TRACE_EBX} mov dword [{EOI}], 0; iretd"
    code = f"""
        mov dword [{LINT0}], 0x10000; mov dword [{SVR}], 0x11ff
        mov dword [{IOREGSEL}], 0x19; mov dword [{IOWIN}], 0
        mov dword [{IOREGSEL}], 0x18; mov dword [{IOWIN}], 0x8040
        {UART_ON} xor ebx, ebx; sti; out dx, al
        nop; nop; cli; mov eax, [{IOWIN}]; and eax, 0x4000; out 0x80, eax
    """
    with InterruptRig("model", code, {0x40: handler}) as rig:
        assert rig.trace() == [1, 0x4000]


def test_tsc_deadline_comes_no_sooner_than_it_says_and_reads_zero_then() -> None:
    code = f"""
        mov dword [{LVT_TIMER}], 0x40040
        rdtsc; mov esi, eax; mov edi, edx; add eax, 3000000; adc edx, 0; mov ebp, eax; mov ebx, edx
        mov ecx, 0x6e0; wrmsr; sti
        wait: hlt; cmp dword [{ALREADY}], 0; je wait
        cli; mov ecx, 0x6e0; rdmsr; or eax, edx; out 0x80, eax
    """
    handler = f"""
        rdtsc; sub eax, ebp; sbb edx, ebx; shr edx, 31; mov eax, edx; out 0x80, eax
        inc dword [{ALREADY}]; mov dword [{EOI}], 0; iretd
    """
    with InterruptRig("model", code, {0x40: handler}) as rig:
        assert rig.trace() == [0, 0]


def test_tsc_deadline_that_is_over_interrupts_before_the_next_instruction() -> None:
    code = f"""
        mov dword [{LVT_TIMER}], 0x40040; sti
        rdtsc; mov ecx, 0x6e0; xor ebx, ebx; wrmsr; inc ebx; cli
        rdmsr; or eax, edx; out 0x80, eax
    """
    with InterruptRig("model", code, {0x40: f"{TRACE_EBX} mov dword [{EOI}], 0; iretd"}) as rig:
        assert rig.trace() == [0, 0]


def test_tsc_deadline_is_for_its_mode_alone() -> None:
    code = f"""
        mov dword [{LVT_TIMER}], 0x40; mov ecx, 0x6e0; mov eax, 5; xor edx, edx; wrmsr; rdmsr; out 0x80, eax
        mov dword [{LAPIC_BASE + 0x380}], 0x10000000
        mov dword [{LVT_TIMER}], 0x40040; mov eax, [{LAPIC_BASE + 0x390}]; out 0x80, eax
    """
    with InterruptRig("model", code, {}) as rig:
        assert rig.trace() == [0, 0]


def test_apic_is_in_cpuid_while_it_is_on() -> None:
    ask = "mov eax, 1; cpuid; mov eax, edx; and eax, 0x200; out 0x80, eax;"
    switch = "mov ecx, 0x1b; rdmsr; xor eax, 0x800; wrmsr;"
    with InterruptRig("model", ask + (switch + ask) * 2, {}) as rig:
        assert rig.trace() == [0x200, 0, 0x200]


def test_instruction_that_writes_to_its_apic_and_elsewhere_is_executed_once() -> None:
    """PUSH of a register is read back; the write to the APIC ends its block, the one before it must not be repeated."""
    code = f"""
        mov ecx, 3
        again: mov dword [{ALREADY}], 0; inc dword [{ALREADY}]; mov esi, {ALREADY}; mov edi, {TPR}; cld
        movsd; inc ebx; mov eax, [{ALREADY}]; out 0x80, eax; mov eax, [{TPR}]; out 0x80, eax
        mov eax, esi; out 0x80, eax
        dec ecx; jnz again
    """
    with InterruptRig("model", code, {}) as rig:
        assert rig.trace() == [1, 1, ALREADY + 4] * 3


def test_without_controllers_cr8_is_a_register() -> None:
    with ModelRig(assemble("mov eax, 9; mov cr8, rax; mov rax, cr8; out 0x80, eax; hlt", 64), 64) as rig:
        assert rig.run() == Hlt(interrupts_enabled=False)
        assert rig.bus.log == [("out", 0x80, 4, 9)]
