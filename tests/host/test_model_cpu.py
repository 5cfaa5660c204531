"""The modelled CPU: intercepts, exceptions, interrupts, self-modifying code and stops."""

from __future__ import annotations

import struct
import threading

import pytest
from support.assembler import assemble
from support.guest_rig import PROTECTED, ModelRig, ScriptedInterrupts

from casemate.guests.entry import CODE32, CODE64, PAGE_TABLES, Bits
from casemate.guests.user_mode import in_user_mode
from casemate.host.exits import Hlt, Interrupted, KvmInternalError, Shutdown

HALTED = Hlt(interrupts_enabled=False)
IDT_POINTER, COUNT = 0x1000, 0x2000
IDT = 0x200000
HANDLER = 0x201000
CODE = 0x202000
"""RAM for code that is rewritten."""
RETURN = {value: int.from_bytes(assemble(f"mov al, {value}; ret; nop"), "little") for value in (1, 2, 4)}
"""Code that returns a number, as one doubleword."""
UNMAPPED = 0x1_0000_0000
"""Behind the 4 GiB that the entry code maps."""


def gate(rig: ModelRig, vector: int, handler: int) -> None:
    """An interrupt gate for ``vector`` in the IDT at ``IDT``."""
    selector = CODE64 if rig.bits == 64 else CODE32
    low = struct.pack("<HHBBH", handler & 0xFFFF, selector, 0, 0x8E, handler >> 16)
    entry = low + bytes(8) if rig.bits == 64 else low
    rig.put(IDT + vector * len(entry), entry)


LOAD_IDT = f"lidt [{IDT_POINTER}]; "


def with_idt(rig: ModelRig) -> None:
    """256 gates at ``IDT``, for code that begins with ``LOAD_IDT``."""
    limit = 256 * (16 if rig.bits == 64 else 8) - 1
    rig.put(IDT_POINTER, struct.pack("<HQ", limit, IDT))


def test_port_reads_and_writes_of_every_width_reach_the_bus() -> None:
    with ModelRig(
        "in al, 0x40; out 0x80, al; in ax, 0x42; out 0x82, ax; in eax, 0x44; out 0x84, eax; hlt"
    ) as rig:
        rig.bus.answers.update({0x40: 0x11, 0x42: 0x2222, 0x44: 0x44444444})
        assert rig.run() == HALTED
        assert rig.bus.log == [
            ("in", 0x40, 1, 0x11),
            ("out", 0x80, 1, 0x11),
            ("in", 0x42, 2, 0x2222),
            ("out", 0x82, 2, 0x2222),
            ("in", 0x44, 4, 0x44444444),
            ("out", 0x84, 4, 0x44444444),
        ]


def test_apic_base_is_answered_and_unknown_registers_are_counted() -> None:
    code = "mov ecx, 0x1b; rdmsr; out 0x80, eax; mov ecx, 0x12345; rdmsr; wrmsr; out 0x84, eax; hlt"
    with ModelRig(code) as rig:
        assert rig.run() == HALTED
        assert [entry[3] for entry in rig.bus.log] == [0xFEE00900, 0]
        assert rig.vm.msrs.unknown == {0x12345: 2}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("vector", "fault", "skip"),
    [
        (0, "xor ecx, ecx; div ecx", 2),
        (3, "int3", 0),  # RIP is already behind it
        (6, "ud2", 2),
        (0x40, "int 0x40", 0),
    ],
    ids=["divide", "breakpoint", "invalid-opcode", "software"],
)
def test_exception_goes_through_the_guests_idt_and_returns(
    bits: Bits, vector: int, fault: str, skip: int
) -> None:
    # The handler counts and steps over the instruction.
    step = f"add qword [rsp], {skip}; iretq" if bits == 64 else f"add dword [esp], {skip}; iretd"
    with ModelRig(LOAD_IDT + f"{fault}; " * 3 + "hlt", bits) as rig:
        with_idt(rig)
        gate(rig, vector, HANDLER)
        rig.put(HANDLER, f"inc dword [{COUNT}]; {step}")
        assert rig.run() == HALTED
        assert rig.ram_at(COUNT, 4) == (3).to_bytes(4, "little")


def test_page_faults_arrive_one_after_the_other_with_their_address() -> None:
    handler = f"""
        add rsp, 8                      # the error code
        mov rax, cr2
        add [{COUNT}], rax
        add qword [rsp], 2              # behind the load
        iretq
    """
    code = LOAD_IDT + f"mov rbx, {UNMAPPED};" + "mov al, [rbx];" * 5 + "hlt"
    with ModelRig(code, 64) as rig:
        with_idt(rig)
        gate(rig, 14, HANDLER)
        rig.put(HANDLER, handler)
        assert rig.run() == HALTED
        assert struct.unpack("<Q", rig.ram_at(COUNT, 8))[0] == 5 * UNMAPPED


def test_page_fault_has_its_error_code() -> None:
    # The handler writes the error code, steps over the faulting write and returns.
    handler = "pop rax; mov [0x2000], eax; add qword [rsp], 2; iretq"
    with ModelRig(LOAD_IDT + f"mov rbx, {UNMAPPED}; mov [rbx], al; hlt", 64) as rig:
        with_idt(rig)
        gate(rig, 14, HANDLER)
        rig.put(HANDLER, handler)
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 1) == b"\x02"  # a write, in supervisor mode, to a page that is not present


def test_exception_without_a_usable_idt_is_a_triple_fault() -> None:
    with ModelRig(LOAD_IDT + "ud2; hlt", 64) as rig:
        rig.put(IDT_POINTER, struct.pack("<HQ", 0, IDT))
        assert isinstance(rig.run(), Shutdown)


def test_missing_gate_becomes_a_double_fault() -> None:
    with ModelRig(LOAD_IDT + "ud2", 64) as rig:
        with_idt(rig)
        gate(rig, 8, HANDLER)
        rig.put(HANDLER, "out 0x80, al; hlt")
        assert rig.run() == HALTED
        assert rig.bus.log[0][:2] == ("out", 0x80)


@pytest.mark.parametrize("bits", [32, 64])
def test_interrupts_wait_for_sti_and_are_delivered_in_order(bits: Bits) -> None:
    # Each handler writes its vector at [0x2000 + n], n counted in ebx; the guest halts until both came.
    base, ret = ("rbx", "iretq") if bits == 64 else ("ebx", "iretd")
    code = LOAD_IDT + "xor ebx, ebx; out 0x80, al; sti; again: hlt; cmp ebx, 2; jne again; cli; hlt"
    with ModelRig(code, bits, interrupts=ScriptedInterrupts(0x30, 0x41)) as rig:
        with_idt(rig)
        for number, vector in enumerate((0x30, 0x41)):
            address = HANDLER + 0x100 * number
            gate(rig, vector, address)
            rig.put(address, f"mov byte [{base} + 0x2000], {vector}; inc ebx; {ret}")
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 2) == b"\x30\x41"
        assert rig.bus.log[0][:2] == ("out", 0x80)


def test_interrupt_interrupts_a_busy_loop_that_polls_a_port() -> None:
    code = LOAD_IDT + "xor ebx, ebx; sti; poll: in al, dx; test ebx, ebx; jz poll; cli; hlt"
    interrupts = ScriptedInterrupts()
    with ModelRig(code, 64, interrupts=interrupts) as rig:
        with_idt(rig)
        gate(rig, 0x50, HANDLER)
        rig.put(HANDLER, "inc ebx; iretq")
        timer = threading.Timer(0.05, lambda: interrupts.vectors.append(0x50))
        timer.start()
        assert rig.run() == HALTED
        timer.join()


class OverlookedInterrupts(ScriptedInterrupts):
    """One that is due while the guest runs, which the thread that looks after timers does not notice."""

    def __init__(self, vector: int) -> None:
        super().__init__(vector)
        self.is_running = False

    def deadline(self) -> int | None:
        return None

    def pending(self) -> bool:
        is_due, self.is_running = self.is_running, True
        return is_due and super().pending()


def test_guest_that_spins_gets_its_interrupts_although_nobody_looks_after_its_timers() -> None:
    code = LOAD_IDT + "sti; mov ecx, 50000000; spin: pause; dec ecx; jnz spin; cli; hlt"
    with ModelRig(code, 64, interrupts=OverlookedInterrupts(0x50)) as rig:
        with_idt(rig)
        gate(rig, 0x50, HANDLER)
        rig.put(HANDLER, "out 0x80, al; hlt")
        assert rig.run() == HALTED
        assert [access[:2] for access in rig.bus.log] == [("out", 0x80)]


def test_code_that_the_guest_rewrites_runs_as_rewritten() -> None:
    code = f"""
                mov ecx, 100
        again:  mov [{CODE} + 1], cl    # mov al, cl
                mov eax, {CODE}
                call eax
                movzx eax, al
                add [0x2000], eax
                dec ecx
                jne again
                hlt
    """
    with ModelRig(code) as rig:
        rig.put(CODE, "mov al, 0; ret")
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 4) == sum(range(1, 101)).to_bytes(4, "little")


def test_code_rewritten_after_its_page_was_data_runs_as_rewritten() -> None:
    """A store-heavy page turns into code, is executed, then written to again: the engine must notice."""
    code = f"""
        mov edi, {CODE}; mov ecx, 0x400; mov eax, 0xc3c3c3c3; rep stosd     # fill the page with RET
        mov edi, {CODE}; mov dword [edi], {RETURN[1]}; call edi; mov bl, al
        mov dword [edi], {RETURN[2]}; call edi; add bl, al
        mov dword [edi - 0x10], 0                                           # a write elsewhere
        mov dword [edi], {RETURN[4]}; call edi; add bl, al
        mov [0x2000], bl; hlt
    """
    with ModelRig(code) as rig:
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 1) == b"\x07"


def test_code_rewritten_through_another_virtual_address_runs_as_rewritten() -> None:
    """Two virtual pages of one physical page: writes through one (at 5 GiB), execution through the other."""
    code = f"""
        out 0x80, al
        mov rdi, {(5 << 30) + CODE}; mov esi, {CODE}
        mov dword [rdi], {RETURN[1]}; mov dword [rdi], {RETURN[1]}  # the first makes the page's TLB entry dirty
        call rsi; mov bl, al
        mov dword [rdi], {RETURN[2]}; call rsi; add bl, al
        mov dword [rdi], {RETURN[4]}; call rsi; add bl, al
        mov [0x2000], bl; hlt
    """
    with ModelRig(code, 64) as rig:
        view = rig.ram.writable.view

        def map_alias() -> None:
            struct.pack_into("<Q", view, PAGE_TABLES + 0x1000 + 8 * 5, PROTECTED | 3)
            struct.pack_into("<QQ", view, PROTECTED, 0x83, 0x200083)

        rig.bus.on_write_port[0x80] = map_alias
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 1) == b"\x07"


def test_page_tables_are_marked_as_accessed_and_dirty() -> None:
    seen = []
    entry = PAGE_TABLES + 0x2000 + 8  # of the second 2 MiB
    with ModelRig("mov al, [0x202000]; out 0x80, al; mov [0x202000], al; out 0x80, al; hlt", 64) as rig:
        rig.bus.on_write_port[0x80] = lambda: seen.append(rig.ram_at(entry, 1)[0])
        assert rig.run() == HALTED
    assert seen == [0xA3, 0xE3]


def test_invlpg_of_a_large_page_forgets_all_of_it() -> None:
    # Two loads in the third 2 MiB; behind INVLPG of the first, the second finds what is mapped now.
    code = """
        out 0x80, al; mov al, [0x402000]; mov al, [0x403000]; out 0x81, al
        out 0x80, al; invlpg [0x402000]; mov al, [0x403000]; out 0x81, al; hlt
    """
    with ModelRig(code, 64) as rig:
        view, frames = rig.ram.writable.view, iter((0, 0x200000))
        view[0x3000], view[0x203000] = 0x11, 0x22

        def remap() -> None:
            struct.pack_into("<Q", view, PAGE_TABLES + 0x2000 + 8 * 2, next(frames) | 0x83)

        rig.bus.on_write_port[0x80] = remap
        assert rig.run() == HALTED
        assert [value for kind, port, _, value in rig.bus.log if port == 0x81] == [0x11, 0x22]


def test_pages_of_supervisor_code_are_closed_to_user_code() -> None:
    """Also where the engine has to begin to walk pages itself; without an IDT the fault ends the run."""
    payload = assemble("mov byte [0x2000], 0x55; out 0x80, al; mov al, [0x202000]; out 0x81, al", 64)
    with ModelRig(in_user_mode(payload), 64) as rig:

        def close_second_page() -> None:
            struct.pack_into("<Q", rig.ram.writable.view, PAGE_TABLES + 0x2000 + 8, 0x200083)

        rig.bus.on_write_port[0x80] = close_second_page
        assert isinstance(rig.run(), Shutdown | KvmInternalError)
        assert rig.ram_at(0x2000, 1) == b"\x55"
        assert [port for _, port, _, _ in rig.bus.log] == [0x80]


def test_code_that_a_device_rewrites_runs_as_rewritten() -> None:
    call = f"mov eax, {CODE}; call eax; out 0x81, al;"
    with ModelRig(f"{call} out 0x80, al; {call} hlt") as rig:
        rig.put(CODE, "mov al, 0x11; ret")

        def dma() -> None:
            rig.put(0x202001, b"\x22")
            rig.vm.memory_written(0x202001, 1)  # type: ignore[arg-type]

        rig.bus.on_write_port[0x80] = dma
        assert rig.run() == HALTED
        assert [value for kind, port, _, value in rig.bus.log if port == 0x81] == [0x11, 0x22]


def test_string_copy_is_right_where_virtual_is_not_physical() -> None:
    """Virtual 4 MiB shows physical 0, virtual 6 MiB physical 2 MiB; the copy crosses pages on both sides."""
    code = "out 0x80, al; mov esi, 0x409800; mov edi, 0x610400; mov ecx, 0x200; rep movsq; hlt"
    with ModelRig(code, 64) as rig:
        view = rig.ram.writable.view

        def remap() -> None:
            struct.pack_into("<QQ", view, PAGE_TABLES + 0x2000 + 8 * 2, 0x000083, 0x200083)

        rig.bus.on_write_port[0x80] = remap
        pattern = bytes(range(256)) * 16
        view[0x9800:0xA800] = pattern
        assert rig.run() == HALTED
        assert rig.ram_at(0x210400, 0x1000) == pattern
        assert len(rig.bus.log) == 1


@pytest.mark.parametrize(
    ("setup", "source", "expected"),
    [
        ("cld", b"abcdefgh", b"abcdefgh"),  # forwards
        ("std; mov esi, 0x2007; mov edi, 0x203007", b"abcdefgh", b"abcdefgh"),  # backwards from the end
    ],
)
def test_string_copy_honours_direction(setup: str, source: bytes, expected: bytes) -> None:
    code = f"mov esi, 0x2000; mov edi, 0x203000; mov ecx, 8; {setup}; rep movsb; hlt"
    with ModelRig(code) as rig:
        rig.ram.writable.view[0x2000 : 0x2000 + len(source)] = source
        assert rig.run() == HALTED
        assert rig.ram_at(0x203000, len(expected)) == expected


def test_overlapping_copy_repeats_the_pattern() -> None:
    with ModelRig(
        "mov esi, 0x2000; mov edi, 0x2002; mov ecx, 16; rep movsb; mov [0x203000], edi; hlt"
    ) as rig:
        rig.ram.writable.view[0x2000:0x2002] = b"xy"
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 18) == b"xy" * 9
        assert rig.ram_at(0x203000, 4) == (0x2012).to_bytes(4, "little")


def test_string_fill_leaves_the_registers_that_the_instruction_leaves() -> None:
    code = """
        mov eax, 0x12345678; mov edi, 0x203000; mov ecx, 0x100; rep stosd
        mov [0x2000], edi; mov [0x2004], ecx; hlt
    """
    with ModelRig(code) as rig:
        assert rig.run() == HALTED
        assert rig.ram_at(0x203000, 0x400) == (0x12345678).to_bytes(4, "little") * 0x100
        assert rig.ram_at(0x2000, 8) == struct.pack("<II", 0x203400, 0)


def test_string_copy_into_a_readonly_slot_stores_every_element() -> None:
    with ModelRig("mov esi, 0x2000; mov edi, 0xf0000; mov ecx, 6; rep movsb; hlt") as rig:
        rig.ram.writable.view[0x2000:0x2006] = b"flash!"
        assert rig.run() == HALTED
        assert bytes(value for kind, _, _, value in rig.bus.log if kind == "write") == b"flash!"


def test_stop_ends_a_loop_that_does_nothing() -> None:
    with ModelRig("jmp $") as rig:
        threading.Timer(0.05, rig.vcpu.stop).start()
        assert rig.run() == Interrupted()


def test_stop_ends_a_wait_for_an_interrupt_that_never_comes() -> None:
    with ModelRig("sti; hlt", interrupts=ScriptedInterrupts()) as rig:
        threading.Timer(0.05, rig.vcpu.stop).start()
        assert rig.run() == Interrupted()


def test_stopping_and_going_on_loses_and_repeats_nothing() -> None:
    """A read-modify-write loop, stopped every millisecond: each of three million increments happens once."""
    code = "mov ecx, 3000000; again: inc dword [0x2000]; dec ecx; jne again; hlt"
    with ModelRig(code) as rig:
        finished = threading.Event()

        def stopper() -> None:
            while not finished.wait(0.001):
                rig.vcpu.stop()

        thread = threading.Thread(target=stopper)
        thread.start()
        stops = 0
        while rig.run() == Interrupted():
            stops += 1
        finished.set()
        thread.join()
        assert stops > 0
        assert rig.ram_at(0x2000, 4) == (3_000_000).to_bytes(4, "little")


def test_reset_starts_over_with_memory_kept() -> None:
    with ModelRig("inc dword [0x2000]; hlt") as rig:
        assert rig.run() == HALTED
        rig.vcpu.reset()
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 1) == b"\x02"


def test_two_machines_in_one_process_do_not_mix_registers() -> None:
    code = "mov ecx, 0x1b; rdmsr; out 0x80, eax; hlt"
    with ModelRig(code) as one, ModelRig(code) as two:
        two.vm.msrs.write(0x1B, 0xFEE00800)
        assert one.run() == HALTED
        assert two.run() == HALTED
        assert one.bus.log[0][3] == 0xFEE00900
        assert two.bus.log[0][3] == 0xFEE00800
