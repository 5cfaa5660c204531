"""Where the modelled CPU does as the manuals say and its engine alone would not (Intel SDM; AMD APM)."""

from __future__ import annotations

import struct

import pytest
from support.assembler import assemble
from support.guest_rig import ModelRig, ScriptedInterrupts
from test_model_delivery import (
    DESCRIPTORS,
    DUMP,
    GDT,
    HALTED,
    HANDLER,
    KERNEL_CS,
    KERNEL_STACK,
    POINTERS,
    SAVE_FRAME,
    TSS,
    UNMAPPED,
    USER,
    USER_CS,
    USER_STACK,
    Delivery,
    enter_user,
    write_msr,
)

from casemate.host.exits import Interrupted

GENERAL_PROTECTION = 13
RF = 1 << 16
PLACE = 0x205000
"""Code of a guest at a known place."""
NOT_CANONICAL = 1 << 47
EFER, PAT = 0xC0000080, 0x277
SYSENTER_EIP, LSTAR, CSTAR = 0x176, 0xC0000082, 0xC0000083
FS_BASE, GS_BASE, KERNEL_GS_BASE = 0xC0000100, 0xC0000101, 0xC0000102


NOTE_ERROR = f"pop qword [{DUMP}]; pop qword [{DUMP + 8}]; mov byte [{DUMP + 16}], 1; hlt"


def is_refused(code: str, refused: str) -> bool:
    """Whether ``refused``, 64-bit code of the kernel behind ``code``, raises #GP(0) with RIP on it."""
    with Delivery(f"mov eax, {PLACE}; jmp rax") as rig:
        rig.put(PLACE, f"{code}; nop; {refused}; hlt")
        rig.gate(GENERAL_PROTECTION)
        rig.put(HANDLER, NOTE_ERROR)
        assert rig.run() == HALTED
        error_code, rip, has_raised = struct.unpack("<QQB", rig.ram_at(DUMP, 17))
        assert error_code == 0
        assert rip == (PLACE + len(assemble(f"{code}; nop", 64)) if has_raised else 0)
        return bool(has_raised)


@pytest.mark.parametrize("bit", [13, 14, 15, 19, 23, 24, 31, 32, 63])
def test_bits_of_cr4_that_the_processor_does_not_have_are_refused(bit: int) -> None:
    assert is_refused(f"mov rax, cr4; mov rcx, {1 << bit}; or rax, rcx", "mov cr4, rax")


@pytest.mark.parametrize("bit", [2, 3, 4, 6, 7, 8, 9, 10, 16, 18])
def test_bits_of_cr4_that_it_has_are_taken(bit: int) -> None:
    assert not is_refused(f"mov rax, cr4; mov rcx, {1 << bit}; or rax, rcx", "mov cr4, rax")


@pytest.mark.parametrize(
    ("change", "register"),
    [
        ("and rax, -33", "cr4"),  # PAE, in long mode
        ("or eax, 0x1000", "cr4"),  # LA57, in long mode
        ("mov rcx, 0x100000000; or rax, rcx", "cr0"),
        ("mov ecx, 0xfffffffe; and rax, rcx", "cr0"),  # PG without PE
        ("mov ecx, 0x7fffffff; and rax, rcx", "cr0"),  # no PG in 64-bit mode
        ("or eax, 0x20000000", "cr0"),  # NW without CD
        ("mov rcx, 0x10000000000000; or rax, rcx", "cr3"),
    ],
)
def test_values_of_control_registers_that_make_no_sense_are_refused(change: str, register: str) -> None:
    clear = "mov ecx, 0x9fffffff; and rax, rcx;" if register == "cr0" else ""
    assert is_refused(f"mov rax, {register}; {clear} {change}", f"mov {register}, rax")


@pytest.mark.parametrize("register", [FS_BASE, GS_BASE, KERNEL_GS_BASE, LSTAR, CSTAR, SYSENTER_EIP])
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (NOT_CANONICAL, True),
        (0xFFFF000000000000, True),
        (NOT_CANONICAL - 1, False),
        (0xFFFF800000000000, False),
    ],
)
def test_addresses_in_registers_are_canonical(register: int, address: int, expected: bool) -> None:
    setting = write_msr(register, address).removesuffix("wrmsr;")
    assert is_refused(setting, "wrmsr") == expected


@pytest.mark.parametrize(
    ("register", "value", "expected"),
    [
        (EFER, 0x502, True),
        (EFER, 0x400, True),  # LME cannot change while paging is on
        (EFER, 0x501 | 1 << 32, True),
        (EFER, 0xD01, False),
        (PAT, 0x0007040600070402, True),
        (PAT, 0x0807040600070406, True),
        (PAT, 0x0007010500070406, False),
    ],
)
def test_reserved_values_of_registers_are_refused(register: int, value: int, expected: bool) -> None:
    assert is_refused(write_msr(register, value).removesuffix("wrmsr;"), "wrmsr") == expected


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("wrfsbase rax", True),
        ("wrgsbase r9", True),
        ("wrgsbase r10", False),
        ("wrfsbase eax", False),  # the lower half is an address
        ("rdfsbase rax", False),
    ],
)
def test_segment_bases_that_are_set_without_a_register_are_canonical(
    instruction: str, expected: bool
) -> None:
    values = (
        f"mov rax, cr4; or eax, 0x10000; mov cr4, rax; mov rax, {NOT_CANONICAL}; mov r9, rax; xor r10, r10"
    )
    assert is_refused(values, instruction) == expected


def test_wrfsbase_sets_the_base_and_is_undefined_where_it_is_not_enabled() -> None:
    with Delivery(
        f"mov rax, cr4; or eax, 0x10000; mov cr4, rax; mov r12d, {DUMP + 0x80}; wrfsbase r12;"
        f" xor eax, eax; mov byte [fs:rax], 7; rdfsbase r8; mov [{DUMP + 0x88}], r8;"
        f" mov rax, cr4; xor eax, 0x10000; mov cr4, rax; wrfsbase r12"
    ) as rig:
        rig.gate(6)
        assert rig.run() == HALTED
        assert (rig.word(DUMP + 0x80), rig.word(DUMP + 0x88)) == (7, DUMP + 0x80)
        assert rig.frame()[0] != 0


@pytest.mark.parametrize("first", ["nop", "jmp ahead", "call ahead", "cmp eax, eax; je ahead; nop"])
def test_resume_flag_of_iret_lasts_for_one_instruction(first: str) -> None:
    with Delivery(enter_user(rflags=RF | 2), f"{first}; ahead: int3") as rig:
        rig.gate(3, 0xEE)
        assert rig.run() == HALTED
        assert rig.frame()[2] & RF == 0


@pytest.mark.parametrize(
    ("code", "vector", "is_fault"),
    [("ud2", 6, True), ("hlt", 13, True), ("int3", 3, False), ("int 0x40", 0x40, False)],
)
def test_faults_push_the_resume_flag_and_traps_do_not(code: str, vector: int, is_fault: bool) -> None:
    with Delivery(enter_user(), code) as rig:
        rig.gate(vector, 0xEE)
        rig.put(
            HANDLER, f"pushfq; pop qword [{DUMP + 0x80}];" + ("pop rax;" if vector == 13 else "") + SAVE_FRAME
        )
        assert rig.run() == HALTED
        assert bool(rig.frame()[2] & RF) == is_fault
        assert not rig.word(DUMP + 0x80) & RF


def test_resume_flag_of_iret_is_kept_by_an_interrupt_before_the_instruction() -> None:
    interrupts = ScriptedInterrupts(0x30)
    with Delivery(enter_user(rflags=RF | 0x202), "int3", interrupts=interrupts) as rig:
        rig.gate(0x30)
        rig.gate(3, 0xEE, handler=HANDLER + 0x800)
        assert rig.run() == HALTED
        assert rig.frame()[0] == USER
        assert rig.frame()[2] & RF


def test_smsw_stores_all_of_cr0_in_wide_registers_and_a_word_in_others() -> None:
    code = """
        mov ebx, cr0
        or ebx, 0x10000
        mov cr0, ebx
        mov ebx, -1
        smsw ebx
        mov [0x2000], ebx
        mov ebx, -1
        smsw bx
        mov [0x2004], ebx
        mov ebx, cr0
        mov [0x2008], ebx
        mov byte [0x200c], 1
        smsw ecx                # not the first of its block
        smsw edx
        mov [0x2010], edx
        hlt
    """
    with ModelRig(code) as rig:
        assert rig.run() == HALTED
        wide, narrow, cr0, _, again = struct.unpack("<5I", rig.ram_at(0x2000, 20))
        assert wide == again == cr0
        assert narrow == 0xFFFF0000 | cr0 & 0xFFFF
        assert cr0 >> 16


def test_smsw_of_64_bit_code_stores_all_of_cr0() -> None:
    with ModelRig(
        "mov rbx, -1; smsw rbx; mov [0x2000], rbx; mov rbx, cr0; mov [0x2008], rbx; hlt", 64
    ) as rig:
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 8) == rig.ram_at(0x2008, 8)


REAL_MODE = "mov eax, cr0; and eax, -2; mov cr0, eax;"
"""With the segments, and the stack pointer of 32 bits, of protected mode."""


def test_iret_in_real_mode_uses_the_stack_pointer_that_the_stack_segment_has() -> None:
    code = (
        REAL_MODE
        + "mov esp, 0x90000; mov dword [esp], 0x600; mov dword [esp+4], 0; mov dword [esp+8], 2; iretd"
    )
    with ModelRig(
        code.replace("[esp]", "[0x90000]").replace("[esp+4]", "[0x90004]").replace("[esp+8]", "[0x90008]")
    ) as rig:
        rig.put(0x600, "mov [0x700], esp; hlt")
        assert rig.run() == HALTED
        assert rig.ram_at(0x700, 4) == struct.pack("<I", 0x9000C)


def test_int_in_real_mode_uses_the_stack_pointer_that_the_stack_segment_has() -> None:
    code = "lidt [0x710];" + REAL_MODE + "mov esp, 0x90000; int 0x21; mov [0x704], esp; hlt"
    with ModelRig(code) as rig:
        rig.put(0x710, struct.pack("<HI", 0x3FF, 0))
        rig.put(0x21 * 4, struct.pack("<HH", 0x600, 0))
        rig.put(0x600, "mov [0x700], esp; hlt")
        assert rig.run() == HALTED
        assert rig.ram_at(0x700, 4) == struct.pack("<I", 0x90000 - 6)
        _, segment, flags = struct.unpack("<3H", rig.ram_at(0x90000 - 6, 6))
        assert segment == 8, "CS of protected mode"
        assert flags & 2


@pytest.mark.parametrize(
    ("instruction", "gate", "vector", "error_code"),
    [
        ("int 0x42", {"kind": 0x8E}, 13, 0x42 * 8 + 2),
        ("int 0x42", {"kind": 0x6E}, 11, 0x42 * 8 + 2),
        ("int 0x42", {"kind": 0xE5}, 13, 0x42 * 8 + 2),
        ("int3", {"kind": 0x8E}, 13, 3 * 8 + 2),
        ("ud2", {"kind": 0x0E}, 11, 6 * 8 + 2 + 1),  # which is no instruction's
    ],
    ids=["closed", "absent", "no-gate", "int3", "fault"],
)
def test_fault_in_a_delivery_names_the_gate_and_is_the_instructions(
    instruction: str, gate: dict[str, int], vector: int, error_code: int
) -> None:
    with Delivery(enter_user(), f"nop; {instruction}") as rig:
        number = {"int 0x42": 0x42, "int3": 3, "ud2": 6}[instruction]
        rig.gate(number, **gate)
        rig.gate(vector)
        assert rig.run() == HALTED
        assert rig.frame()[:2] == (error_code, USER + 1)


def test_page_fault_in_the_delivery_of_int_returns_to_it() -> None:
    """The handler mends the kernel's stack, and INT is executed again."""
    mend = f"add rsp, 8; mov dword [{TSS + 4}], {KERNEL_STACK}; mov dword [{TSS + 8}], 0; iretq"
    with Delivery(enter_user(), "nop; int 0x40") as rig:
        rig.put(TSS + 4, struct.pack("<Q", UNMAPPED + 0x1000))
        rig.gate(14, ist=1, handler=HANDLER + 0x800)
        rig.put(HANDLER + 0x800, mend)
        rig.gate(0x40, 0xEE)
        assert rig.run() == HALTED
        assert rig.frame()[0] == USER + 3
        assert rig.word(DUMP + 0x38) == KERNEL_STACK - 40


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_nothing_is_executed_after_the_out_that_ends_a_run(bits: int) -> None:
    with ModelRig("mov al, 3; out 0xf4, al; mov [0x2000], al; hlt", bits) as rig:  # type: ignore[arg-type]
        rig.bus.on_write_port[0xF4] = rig.vcpu.stop
        assert rig.run() == Interrupted()
        assert rig.ram_at(0x2000, 1) == b"\0"
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 1) == b"\x03"


SYSENTER_CS, SYSENTER_ESP = 0x174, 0x175
USER_CS_OF_SYSEXIT = 0x3B
"""``SYSENTER_CS`` and 32 more, for user mode."""


def sysenter_registers() -> str:
    values = ((SYSENTER_CS, KERNEL_CS), (SYSENTER_ESP, KERNEL_STACK), (SYSENTER_EIP, HANDLER + 0x800))
    return "".join(write_msr(index, value) for index, value in values)


def test_sysenter_enters_the_kernel_and_sysexit_leaves_it() -> None:
    kernel = f"""
        mov [{DUMP + 0x60}], rsp
        pushfq
        pop qword [{DUMP + 0x68}]
        mov eax, cs
        mov [{DUMP + 0x70}], rax
        mov eax, ss
        mov [{DUMP + 0x78}], rax
        sysexitq
    """
    user = f"mov edx, behind; mov ecx, {USER_STACK - 8}; stc; sysenter; behind: nop; nop; ud2"
    with Delivery(sysenter_registers() + enter_user(0x202), cpu="max") as rig:
        rig.ram.writable.view[USER : USER + 64] = assemble(user, 64, origin=USER).ljust(64, b"\xf4")
        rig.put(HANDLER + 0x800, kernel)
        rig.gate(6)
        assert rig.run() == HALTED
        stack, flags, cs, ss = (rig.word(DUMP + at) for at in (0x60, 0x68, 0x70, 0x78))
        assert (stack, cs, ss) == (KERNEL_STACK, KERNEL_CS, KERNEL_CS + 8)
        assert flags & 0x201 == 1, "interrupts are off, and the carry is kept"
        rip, user_cs, _, user_stack, _, _ = rig.frame()
        assert rip == USER + len(assemble(user, 64, origin=USER)) - 2
        assert (user_cs, user_stack) == (USER_CS_OF_SYSEXIT, USER_STACK - 8)


@pytest.mark.parametrize(("cpu", "code", "vector"), [("EPYC", KERNEL_CS, 6), ("EPYC", 0, 6), ("max", 0, 13)])
def test_sysenter_is_refused_by_amd_in_long_mode_and_where_it_is_not_set_up(
    cpu: str, code: int, vector: int
) -> None:
    with Delivery(write_msr(SYSENTER_CS, code) + enter_user(), "sysenter", cpu=cpu) as rig:
        rig.gate(vector)
        assert rig.run() == HALTED
        assert rig.frame()[:2] == ((USER, USER_CS) if vector == 6 else (0, USER))


def test_sysenter_registers_of_amd_have_32_bits() -> None:
    setting = write_msr(SYSENTER_EIP, NOT_CANONICAL | 0x1234)
    with Delivery(f"{setting} rdmsr; mov [{DUMP}], eax; mov [{DUMP + 4}], edx; hlt", cpu="EPYC") as rig:
        assert rig.run() == HALTED
        assert rig.word(DUMP) == 0x1234


def test_five_levels_of_page_tables_reach_what_four_do_not() -> None:
    """From paging off, by a table above the four levels: linear addresses of 57 bits."""
    top = 0x207000
    code = f"""
        lgdt [{POINTERS}]
        mov eax, cr4; or eax, 0x1020; mov cr4, eax              # LA57, PAE
        mov eax, {top}; mov cr3, eax
        mov ecx, 0xc0000080; rdmsr; or eax, 0x100; wrmsr        # LME
        mov eax, cr0; or eax, 0x80000000; mov cr0, eax
        jmp {KERNEL_CS}:{PLACE}
    """
    wide = f"""
        mov rax, {(1 << 48) + DUMP}
        mov rax, [rax]
        mov [{DUMP + 8}], rax
        mov ecx, {LSTAR}; xor eax, eax; mov edx, {1 << 23}; wrmsr   # canonical now
        hlt
    """
    with ModelRig(code, 32, cpu="max,+la57") as rig:
        rig.put(POINTERS, struct.pack("<HI", 0x4F, GDT))
        rig.put(GDT, struct.pack("<8Q", *DESCRIPTORS))
        rig.put(top, struct.pack("<2Q", 0x208000 | 3, 0x208000 | 3))
        rig.put(0x208000, struct.pack("<Q", 0x209000 | 3))
        rig.put(0x209000, struct.pack("<4Q", 0x83, 0, 0, 0xC0000083))
        rig.put(DUMP, struct.pack("<Q", 0x1122334455667788))
        rig.put(PLACE, assemble(wide, 64))
        assert rig.run() == HALTED
        assert rig.ram_at(DUMP + 8, 8) == rig.ram_at(DUMP, 8)


@pytest.mark.parametrize("prefix", ["", "lock"])
@pytest.mark.parametrize(
    ("instruction", "operand", "is_equal"),
    [("cmpxchg8b", 8, True), ("cmpxchg8b", 8, False), ("cmpxchg16b", 16, True), ("cmpxchg16b", 16, False)],
)
def test_cmpxchg_of_two_words_changes_the_zero_flag_and_no_other(
    instruction: str, operand: int, is_equal: bool, prefix: str
) -> None:
    code = f"""
        mov rsp, {DUMP + 0x800}
        mov rsi, {DUMP}
        mov eax, 99
        {prefix} {instruction} [rsi]        # how the flags are kept at the end of a block
        jne next
        next:
        mov rax, 5; mov rdx, 0; mov ebx, 0x7fffffff
        cmp eax, ebx                        # CF, PF and AF
        {prefix} {instruction} [rsi]
        pushfq
        pop rax
        out 0x80, eax
        hlt
    """
    with ModelRig(code, 64) as rig:
        rig.put(DUMP, (5 if is_equal else 6).to_bytes(operand, "little"))
        assert rig.run() == HALTED
        flags = rig.bus.log[0][3] & 0xFFFFFFFF
    assert flags == 2 | _flags_of_comparison(5, 0x7FFFFFFF) | (0x40 if is_equal else 0)


def _flags_of_comparison(left: int, right: int) -> int:
    """CF, PF, AF and SF of a 32-bit CMP of two numbers that do not overflow."""
    result = left - right & 0xFFFFFFFF
    parity = (result & 0xFF).bit_count() % 2 == 0
    return (left < right) | parity << 2 | (left & 15 < right & 15) << 4 | (result >> 31) << 7
