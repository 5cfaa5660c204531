"""Exceptions, interrupts and SYSCALL on the modelled CPU, across privilege levels (Intel SDM volume 3, chapter 6)."""

from __future__ import annotations

import struct

import pytest
from support.assembler import assemble
from support.guest_rig import PROTECTED, ModelRig, ScriptedInterrupts

from casemate.guests.entry import CODE32, PAGE_TABLES, Bits
from casemate.host.exits import Hlt, Shutdown

HALTED = Hlt(interrupts_enabled=False)
POINTERS, DUMP = 0x1000, 0x2000
IDT, GDT, TSS, HANDLER, USER = 0x200000, 0x202000, 0x202800, 0x203000, 0x204000
KERNEL_STACK, IST_STACK, USER_STACK = 0x210000, 0x220000, 0x230000
KERNEL_CS, KERNEL_SS, USER_SS, USER_CS = 0x18, 0x20, 0x33, 0x3B
USER_CS32 = 0x2B
TASK = 0x40
UNMAPPED = 1 << 32
"""Behind the 4 GiB that the entry code maps."""

DESCRIPTORS = (
    0,
    0x00CF9B000000FFFF,
    0x00CF93000000FFFF,
    0x00AF9B000000FFFF,
    0x00CF93000000FFFF,
    0x00CFFB000000FFFF,
    0x00CFF3000000FFFF,
    0x00AFFB000000FFFF,
)
OPEN_PAGES = f"""
            mov edi, {PAGE_TABLES}
            mov ecx, 3072
    entry:  or dword [rdi], 4           # the user's bit
            add edi, 8
            dec ecx
            jne entry
            mov rax, cr3
            mov cr3, rax
"""
LOAD_TABLES = f"lgdt [{POINTERS + 0x20}]; lidt [{POINTERS}];"
LOAD_TASK = f"mov eax, {TASK}; ltr eax;"
SAVE_FRAME = f"""
    mov rsi, rsp
    mov edi, {DUMP}
    mov ecx, 6
    rep movsq
    mov [{DUMP + 0x38}], rsp
    mov rax, cr2
    mov [{DUMP + 0x40}], rax
    hlt
"""


def enter_user(rflags: int = 2, rip: int = USER, cs: int = USER_CS, iret: str = "iretq") -> str:
    """To user mode."""
    return "".join(f"push {word};" for word in (USER_SS, USER_STACK, rflags, cs, rip)) + iret


class Delivery(ModelRig):
    """A 64-bit guest with a task state segment, user mode, and a handler that writes down its frame."""

    def __init__(
        self,
        kernel: str,
        user: str = "",
        bits: Bits = 64,
        interrupts: ScriptedInterrupts | None = None,
        *,
        task: bool = True,
        cpu: str = "max",
    ) -> None:
        prologue = OPEN_PAGES + LOAD_TABLES + (LOAD_TASK if task else "") if bits == 64 else ""
        super().__init__(prologue + kernel, bits, interrupts=interrupts, cpu=cpu)
        self.put(USER, user)
        self.put(HANDLER, assemble(SAVE_FRAME, 64))
        self.put(POINTERS, struct.pack("<HQ", 256 * 16 - 1, IDT))
        self.put(POINTERS + 0x20, struct.pack("<HQ", 0x4F, GDT))
        descriptor = struct.pack("<HHBBBBII", 103, TSS & 0xFFFF, TSS >> 16 & 0xFF, 0x89, 0, TSS >> 24, 0, 0)
        self.put(GDT, struct.pack("<8Q", *DESCRIPTORS) + descriptor)
        self.put(TSS + 4, struct.pack("<Q", KERNEL_STACK))
        self.put(TSS + 0x24, struct.pack("<Q", IST_STACK))

    def gate(self, vector: int, kind: int = 0x8E, ist: int = 0, handler: int = HANDLER) -> None:
        low = struct.pack("<HHBBHQ", handler & 0xFFFF, KERNEL_CS, ist, kind, handler >> 16, 0)
        self.put(IDT + 16 * vector, low)

    def frame(self) -> tuple[int, ...]:
        return struct.unpack("<6Q", self.ram_at(DUMP, 48))

    def word(self, gpa: int) -> int:
        return int.from_bytes(self.ram_at(gpa, 8), "little")


@pytest.mark.parametrize(
    ("code", "vector", "error_code", "behind"),
    [
        ("xor ecx, ecx; div ecx", 0, None, 2),
        ("int3", 3, None, 1),
        ("ud2", 6, None, 0),
        ("hlt", 13, 0, 0),
        ("int 0x41", 13, 0x41 * 8 + 2, 0),  # a supervisor's gate
        ("int 0x40", 0x40, None, 2),  # whose gate is open
        ("mov eax, 0x68; mov ds, eax", 13, 0x68, 5),  # behind the table
        (f"mov rax, {UNMAPPED}; mov bl, [rax]", 14, 4, 10),
        (f"mov rax, {UNMAPPED}; mov [rax], bl", 14, 6, 10),
        (f"mov rax, {UNMAPPED}; jmp rax", 14, 4, None),
        ("pushfq; or dword [rsp], 0x100; popfq; nop; nop", 1, None, 10),  # TF: one instruction later
    ],
    ids=[
        "divide",
        "int3",
        "ud2",
        "hlt",
        "closed-gate",
        "open-gate",
        "selector",
        "load",
        "write",
        "jump",
        "single-step",
    ],
)
def test_exception_in_user_mode_reaches_the_handler_on_the_task_segments_stack(
    code: str, vector: int, error_code: int | None, behind: int | None
) -> None:
    with Delivery(enter_user(), code) as rig:
        for number in (0, 1, 3, 6, 13, 14, 0x40, 0x41):
            rig.gate(number, 0xEE if number in (3, 0x40) else 0x8E)
        assert rig.run() == HALTED
        frame = list(rig.frame())
        if error_code is not None:
            assert frame.pop(0) == error_code
        rip = UNMAPPED if behind is None else USER + behind
        assert (frame[0], frame[1], frame[3], frame[4]) == (rip, USER_CS, USER_STACK, USER_SS)
        assert rig.word(DUMP + 0x38) == KERNEL_STACK - 40 - (8 if error_code is not None else 0)
        if vector == 14:
            assert rig.word(DUMP + 0x40) == UNMAPPED


def test_gate_with_a_stack_table_entry_switches_stacks_at_one_privilege_level() -> None:
    with Delivery("ud2") as rig:
        rig.gate(6, ist=1)
        assert rig.run() == HALTED
        assert rig.word(DUMP + 0x38) == IST_STACK - 40


def test_fault_on_a_stack_that_is_not_there_becomes_a_double_fault_on_its_own() -> None:
    with Delivery(f"mov rsp, {UNMAPPED + 0x1000}; ud2") as rig:
        rig.gate(6)
        rig.gate(14)
        rig.gate(8, ist=1)
        assert rig.run() == HALTED
        assert rig.frame()[0] == 0
        assert rig.word(DUMP + 0x38) == IST_STACK - 48


def test_fault_in_a_double_fault_shuts_the_cpu_down() -> None:
    with Delivery(f"mov rsp, {UNMAPPED + 0x1000}; ud2") as rig:
        assert isinstance(rig.run(), Shutdown)


def test_user_mode_without_a_task_segment_is_the_guests_fault_and_shuts_its_cpu_down() -> None:
    with Delivery(enter_user(), "ud2", task=False) as rig:
        for vector in (6, 8, 10):
            rig.gate(vector)
        assert isinstance(rig.run(), Shutdown)


def test_interrupt_preempts_a_user_loop_and_returns_to_it() -> None:
    handler = f"inc dword [{DUMP}]; iretq"
    user = f"wait: cmp dword [{DUMP}], 2; jl wait; ud2"
    with Delivery(enter_user(0x202), user, interrupts=ScriptedInterrupts(0x30, 0x31)) as rig:
        for vector in (0x30, 0x31):
            rig.gate(vector, handler=HANDLER + 0x800)
        rig.put(HANDLER + 0x800, handler)
        rig.put(DUMP, bytes(4))
        rig.gate(6, handler=HANDLER + 0x900)
        rig.put(HANDLER + 0x900, "hlt")
        assert rig.run() == HALTED
        assert rig.word(DUMP) == 2


def write_msr(index: int, value: int) -> str:
    return f"mov ecx, {index}; mov eax, {value & 0xFFFFFFFF}; mov edx, {value >> 32}; wrmsr;"


def enable_syscall(target: int) -> str:
    star = (USER_CS32 & ~3 | 3) << 48 | KERNEL_CS << 32
    return (
        "mov ecx, 0xc0000080; rdmsr; or eax, 1; wrmsr;"  # EFER.SCE
        + write_msr(0xC0000081, star)
        + write_msr(0xC0000082, target)
        + write_msr(0xC0000084, 0x4_0601)  # AC, DF, IF, CF
    )


def test_syscall_enters_and_sysret_leaves_with_flags_and_segments() -> None:
    kernel = f"""
        mov esp, {KERNEL_STACK}
        pushfq
        pop qword [{DUMP}]
        mov eax, cs
        mov [{DUMP + 8}], rax
        mov eax, ss
        mov [{DUMP + 0x10}], rax
        mov [{DUMP + 0x18}], rcx
        mov [{DUMP + 0x20}], r11
        sysretq
    """
    user = f"""
        xor rax, rax
        stc
        std
        syscall
        pushfq
        pop qword [{DUMP + 0x28}]
        mov eax, cs
        mov [{DUMP + 0x30}], rax
        ud2
    """
    with Delivery(enable_syscall(HANDLER + 0x800) + enter_user(0x202), user) as rig:
        rig.put(HANDLER + 0x800, kernel)
        rig.gate(6, handler=HANDLER + 0x900)
        rig.put(HANDLER + 0x900, "hlt")
        assert rig.run() == HALTED
        flags, cs, ss, rcx, r11, after, user_cs = (rig.word(DUMP + 8 * index) for index in range(7))
        assert (cs, ss) == (KERNEL_CS, KERNEL_SS)
        assert flags & 0x601 == 0
        assert flags & 0x44 == 0x44, "xor left ZF and PF, which SFMASK keeps"
        assert rcx == USER + 7
        assert r11 & 0x601 == 0x601
        assert after & 0x601 == 0x601
        assert user_cs == USER_CS


def test_syscall_that_is_not_enabled_is_undefined() -> None:
    with Delivery(enter_user(), "syscall") as rig:
        rig.gate(6)
        assert rig.run() == HALTED
        assert rig.frame()[0] == USER


def test_exception_in_32_bit_user_mode_changes_to_the_supervisors_stack() -> None:
    # Page tables are off: flat 32-bit code, a 32-bit task state segment with SS0 and ESP0.
    load = f"lgdt [{POINTERS + 0x20}]; lidt [{POINTERS}]; mov ax, {TASK}; ltr eax;"
    with Delivery(load + enter_user(cs=USER_CS32, iret="iretd"), "ud2", bits=32) as rig:
        rig.put(TSS + 4, struct.pack("<II", KERNEL_STACK, 0x10))
        gate = struct.pack("<HHBBH", HANDLER & 0xFFFF, CODE32, 0, 0x8E, HANDLER >> 16)
        rig.put(IDT + 6 * 8, gate)
        frame = f"mov esi, esp; mov edi, {DUMP}; mov ecx, 5; rep movsd; mov [{DUMP + 0x20}], esp; hlt"
        rig.put(HANDLER, frame)
        assert rig.run() == HALTED
        eip, cs, _, esp, ss = struct.unpack("<5I", rig.ram_at(DUMP, 20))
        assert (eip, cs, esp, ss) == (USER, USER_CS32, USER_STACK, USER_SS)
        assert rig.word(DUMP + 0x20) == KERNEL_STACK - 20


@pytest.mark.parametrize("code", ["into", "int 4"])
def test_interrupt_whose_gate_is_missing_faults_on_the_instruction(code: str) -> None:
    instruction = "db 0xce" if code == "into" else code
    source = f"lidt [{POINTERS}]; mov al, 0x7f; call near; near: pop ebx; add al, 1; {instruction}; hlt"
    with Delivery(source, bits=32) as rig:
        rig.put(IDT + 13 * 8, struct.pack("<HHBBH", HANDLER & 0xFFFF, CODE32, 0, 0x8E, HANDLER >> 16))
        rig.put(HANDLER, f"pop eax; mov [{DUMP}], eax; pop ecx; sub ecx, ebx; mov [{DUMP + 4}], ecx; hlt")
        assert rig.run() == HALTED
        error, distance = struct.unpack("<II", rig.ram_at(DUMP, 8))
        assert error == 4 * 8 | 2, "the number of the gate"
        assert distance == len(assemble("pop ebx; add al, 1", 32)), "from `near` to the instruction"


def test_interrupt_in_real_mode_goes_through_the_vector_table() -> None:
    with Delivery("xor ax, ax; mov ss, ax; mov sp, 0x3000; int 0x21; hlt", bits=16) as rig:
        rig.put(0x21 * 4, struct.pack("<HH", 0x600, 0))
        rig.put(0x600, "mov byte [cs:0x700], 0x41; iret")
        assert rig.run() == HALTED
        assert rig.ram_at(0x700, 1) == b"A"


def test_x87_store_of_the_user_to_a_readonly_slot_is_undone_by_ud() -> None:
    code = f"fninit; fld1; mov ebx, {PROTECTED}; cmp ebx, ebx; stc; fstp dword [rbx]"
    with Delivery(enter_user(), code) as rig:
        rig.vm.delete_slot(3)
        rig.add(3, PROTECTED, 0x1000, rig.ram.writable.hva, readonly=True)
        rig.gate(6)
        rig.put(HANDLER, f"fstsw [{DUMP + 0x60}];" + SAVE_FRAME)
        assert rig.run() == HALTED
        rip, cs, rflags, rsp, ss, _ = rig.frame()
        assert (rip, cs, rsp, ss) == (USER + 12, USER_CS, USER_STACK, USER_SS)
        assert rflags & 0x41 == 0x41
        assert rig.ram_at(DUMP + 0x60, 2) == b"\x00\x38"  # nothing was popped
        assert rig.bus.log == []
