"""Exceptions, interrupts and SYSCALL on the modelled CPU, across privilege levels (Intel SDM volume 3, chapter 6)."""

from __future__ import annotations

import struct

import pytest
from support.guest_rig import PROTECTED, ModelRig, ScriptedInterrupts

from casemate.guests.entry import CODE32, Bits
from casemate.host.exits import Hlt, Shutdown

HALTED = Hlt(interrupts_enabled=False)
POINTERS, DUMP = 0x1000, 0x2000
IDT, GDT, TSS, HANDLER, USER = 0x200000, 0x202000, 0x202800, 0x203000, 0x204000
KERNEL_STACK, IST_STACK, USER_STACK = 0x210000, 0x220000, 0x230000
KERNEL_CS, KERNEL_SS, USER_SS, USER_CS = 0x18, 0x20, 0x33, 0x3B
USER_CS32 = 0x2B
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
OPEN_PAGES = (
    "bf00001000 b9000c0000 830f04 83c708 ffc9 75f6 0f20d8 0f22d8"  # user bit into all entries; new CR3
)
LOAD_TABLES = "0f011425 20100000 0f011c25 00100000"  # lgdt [0x1020]; lidt [0x1000]
LOAD_TASK = "b840000000 0f00d8"  # mov eax, TASK; ltr ax
SAVE_FRAME = "4889e6 bf00200000 b906000000 f348a5 48892425 38200000 0f20d0 48890425 40200000 f4"
"""rep movsq of 6 words at rsp to DUMP; rsp; cr2; hlt."""


def enter_user(rflags: int = 2, rip: int = USER, cs: int = USER_CS) -> str:
    """iretq to user mode."""
    words = (USER_SS, USER_STACK, rflags, cs, rip)
    return "".join("68" + struct.pack("<I", word).hex() for word in words) + "48cf"


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
    ) -> None:
        prologue = OPEN_PAGES + LOAD_TABLES + (LOAD_TASK if task else "") if bits == 64 else ""
        super().__init__(prologue + kernel, bits, interrupts=interrupts)
        self.put(USER, user)
        self.put(HANDLER, SAVE_FRAME)
        self.put(POINTERS, struct.pack("<HQ", 256 * 16 - 1, IDT).hex())
        self.put(POINTERS + 0x20, struct.pack("<HQ", 0x4F, GDT).hex())
        descriptor = struct.pack("<HHBBBBII", 103, TSS & 0xFFFF, TSS >> 16 & 0xFF, 0x89, 0, TSS >> 24, 0, 0)
        self.put(GDT, (struct.pack("<8Q", *DESCRIPTORS) + descriptor).hex())
        self.put(TSS + 4, struct.pack("<Q", KERNEL_STACK).hex())
        self.put(TSS + 0x24, struct.pack("<Q", IST_STACK).hex())

    def put(self, gpa: int, code: str) -> None:
        data = bytes.fromhex(code)
        self.ram.writable.view[gpa : gpa + len(data)] = data

    def gate(self, vector: int, kind: int = 0x8E, ist: int = 0, handler: int = HANDLER) -> None:
        low = struct.pack("<HHBBHQ", handler & 0xFFFF, KERNEL_CS, ist, kind, handler >> 16, 0)
        self.put(IDT + 16 * vector, low.hex())

    def frame(self) -> tuple[int, ...]:
        return struct.unpack("<6Q", self.ram_at(DUMP, 48))

    def word(self, gpa: int) -> int:
        return int.from_bytes(self.ram_at(gpa, 8), "little")


@pytest.mark.parametrize(
    ("code", "vector", "error_code", "behind"),
    [
        ("31c9 f7f1", 0, None, 2),  # xor ecx, ecx; div ecx
        ("cc", 3, None, 1),  # int3
        ("0f0b", 6, None, 0),  # ud2
        ("f4", 13, 0, 0),  # hlt
        # int 0x41, a supervisor's gate; on hardware the error code is 8 times the vector, and RIP is on it
        ("cd41", 13, 0x41 * 16 + 2, 2),
        ("cd40", 0x40, None, 2),  # int 0x40, whose gate is open
        ("b868000000 8ed8", 13, 0x68, 5),  # mov ds, a selector behind the table
        ("48b8 0000000001000000 8a18", 14, 4, 10),  # load from an unmapped page
        ("48b8 0000000001000000 8818", 14, 6, 10),  # write to an unmapped page
        ("48b8 0000000001000000 ffe0", 14, 4, None),  # jump to an unmapped page
        ("9c 810c24 00010000 9d 90 90", 1, None, 10),  # popfq with TF: one instruction later
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
    with Delivery("0f0b") as rig:
        rig.gate(6, ist=1)
        assert rig.run() == HALTED
        assert rig.word(DUMP + 0x38) == IST_STACK - 40


def test_fault_on_a_stack_that_is_not_there_becomes_a_double_fault_on_its_own() -> None:
    with Delivery("48bc 0010000001000000 0f0b") as rig:  # mov rsp, UNMAPPED + 0x1000; ud2
        rig.gate(6)
        rig.gate(14)
        rig.gate(8, ist=1)
        assert rig.run() == HALTED
        assert rig.frame()[0] == 0
        assert rig.word(DUMP + 0x38) == IST_STACK - 48


def test_fault_in_a_double_fault_shuts_the_cpu_down() -> None:
    with Delivery("48bc 0010000001000000 0f0b") as rig:
        assert isinstance(rig.run(), Shutdown)


def test_user_mode_without_a_task_segment_is_the_guests_fault_and_shuts_its_cpu_down() -> None:
    with Delivery(enter_user(), "0f0b", task=False) as rig:
        for vector in (6, 8, 10):
            rig.gate(vector)
        assert isinstance(rig.run(), Shutdown)


def test_interrupt_preempts_a_user_loop_and_returns_to_it() -> None:
    handler = "ff042500200000 48cf"  # inc dword [DUMP]; iretq
    user = "833c2500200000 02 7cf6 0f0b"  # 1: cmp dword [DUMP], 2; jl 1b; ud2
    with Delivery(enter_user(0x202), user, interrupts=ScriptedInterrupts(0x30, 0x31)) as rig:
        for vector in (0x30, 0x31):
            rig.gate(vector, handler=HANDLER + 0x800)
        rig.put(HANDLER + 0x800, handler)
        rig.put(DUMP, "00000000")
        rig.gate(6, handler=HANDLER + 0x900)
        rig.put(HANDLER + 0x900, "f4")
        assert rig.run() == HALTED
        assert rig.word(DUMP) == 2


def write_msr(index: int, value: int) -> str:
    words = (index, value & 0xFFFFFFFF, value >> 32)
    ecx, eax, edx = (struct.pack("<I", word).hex() for word in words)
    return f"b9{ecx} b8{eax} ba{edx} 0f30"


def enable_syscall(target: int) -> str:
    star = (USER_CS32 & ~3 | 3) << 48 | KERNEL_CS << 32
    enable = "b9800000c0 0f32 0d01000000 0f30"  # EFER |= SCE
    return (
        enable
        + write_msr(0xC0000081, star)
        + write_msr(0xC0000082, target)
        + write_msr(0xC0000084, 0x4_0601)  # AC, DF, IF, CF
    )


def test_syscall_enters_and_sysret_leaves_with_flags_and_segments() -> None:
    # Kernel: flags, CS, SS, RCX, R11 to DUMP; sysretq. User: the flags behind it, then ud2.
    kernel = "9c 8f042500200000 8cc8 48890425 08200000 8cd0 48890425 10200000"
    kernel += "48890c25 18200000 4c891c25 20200000 480f07"
    user = "4831c0 f9 fd 0f05 9c 8f042528200000 8cc8 48890425 30200000 0f0b"  # stc; std; syscall; pushfq; pop
    with Delivery(enable_syscall(HANDLER + 0x800) + enter_user(0x202), user) as rig:
        rig.put(HANDLER + 0x800, kernel.replace("9c 8f04", "bc00002100 9c 8f04", 1))  # mov esp, KERNEL_STACK
        rig.gate(6, handler=HANDLER + 0x900)
        rig.put(HANDLER + 0x900, "f4")
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
    with Delivery(enter_user(), "0f05") as rig:
        rig.gate(6)
        assert rig.run() == HALTED
        assert rig.frame()[0] == USER


def test_exception_in_32_bit_user_mode_changes_to_the_supervisors_stack() -> None:
    # Page tables are off: flat 32-bit code, a 32-bit task state segment with SS0 and ESP0.
    load = "0f0115 20100000 0f011d 00100000 66b84000 0f00d8"  # lgdt; lidt; ltr
    words = (USER_SS, USER_STACK, 2, USER_CS32, USER)
    enter = "".join("68" + struct.pack("<I", word).hex() for word in words) + "cf"
    with Delivery(load + enter, "0f0b", bits=32) as rig:
        rig.put(TSS + 4, struct.pack("<II", KERNEL_STACK, 0x10).hex())
        gate = struct.pack("<HHBBH", HANDLER & 0xFFFF, CODE32, 0, 0x8E, HANDLER >> 16)
        rig.put(IDT + 6 * 8, gate.hex())
        # mov esi, esp; mov edi, DUMP; mov ecx, 5; rep movsd; mov [DUMP + 0x20], esp; hlt
        rig.put(HANDLER, "89e6 bf00200000 b905000000 f3a5 892520200000 f4")
        assert rig.run() == HALTED
        eip, cs, _, esp, ss = struct.unpack("<5I", rig.ram_at(DUMP, 20))
        assert (eip, cs, esp, ss) == (USER, USER_CS32, USER_STACK, USER_SS)
        assert rig.word(DUMP + 0x20) == KERNEL_STACK - 20


def test_interrupt_in_real_mode_goes_through_the_vector_table() -> None:
    # xor ax, ax; mov ss, ax; mov sp, 0x3000; int 0x21; hlt
    with Delivery("31c0 8ed0 bc0030 cd21 f4", bits=16) as rig:
        rig.put(0x21 * 4, "0006 0000")
        rig.put(0x600, "2ec606000741 cf")  # mov byte cs:[0x700], 0x41; iret
        assert rig.run() == HALTED
        assert rig.ram_at(0x700, 1) == b"A"


def test_x87_store_of_the_user_to_a_readonly_slot_is_undone_by_ud() -> None:
    # fninit; fld1; mov ebx, PROTECTED; cmp ebx, ebx; stc; fstp dword [rbx]
    code = "dbe3 d9e8 bb00003000 39db f9 d91b"
    with Delivery(enter_user(), code) as rig:
        rig.vm.delete_slot(3)
        rig.add(3, PROTECTED, 0x1000, rig.ram.writable.hva, readonly=True)
        rig.gate(6)
        rig.put(HANDLER, "9bdd3c25 60200000" + SAVE_FRAME)  # fstsw [DUMP + 0x60]
        assert rig.run() == HALTED
        rip, cs, rflags, rsp, ss, _ = rig.frame()
        assert (rip, cs, rsp, ss) == (USER + 12, USER_CS, USER_STACK, USER_SS)
        assert rflags & 0x41 == 0x41
        assert rig.ram_at(DUMP + 0x60, 2) == b"\x00\x38"  # nothing was popped
        assert rig.bus.log == []
