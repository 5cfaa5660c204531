"""The modelled CPU: intercepts, exceptions, interrupts, self-modifying code and stops."""

from __future__ import annotations

import struct
import threading

import pytest
from support.guest_rig import PROTECTED, ModelRig, ScriptedInterrupts

from casemate.guests.entry import CODE32, CODE64, PAGE_TABLES
from casemate.guests.user_mode import in_user_mode
from casemate.host.exits import Hlt, Interrupted, KvmInternalError, Shutdown

HALTED = Hlt(interrupts_enabled=False)
IDT = 0x200000
HANDLER = 0x201000


def gate(rig: ModelRig, vector: int, handler: int, bits: int, kind: int = 0x8E) -> None:
    """An interrupt gate for ``vector`` in the IDT at ``IDT``."""
    selector = CODE64 if bits == 64 else CODE32
    low = struct.pack("<HHBBH", handler & 0xFFFF, selector, 0, kind, handler >> 16)
    entry = low + bytes(8) if bits == 64 else low
    offset = IDT + vector * len(entry)
    rig.ram.writable.view[offset : offset + len(entry)] = entry


def put(rig: ModelRig, gpa: int, code: str) -> None:
    data = bytes.fromhex(code)
    rig.ram.writable.view[gpa : gpa + len(data)] = data


def load_idt(bits: int) -> str:
    """lidt of a table of 256 gates at IDT; the pointer lies at 0x1000."""
    return "0f011c25 00100000" if bits == 64 else "0f011d 00100000"


def with_idt(rig: ModelRig, bits: int) -> None:
    limit = 256 * (16 if bits == 64 else 8) - 1
    rig.ram.writable.view[0x1000:0x100A] = struct.pack("<HQ", limit, IDT)


def test_port_reads_and_writes_of_every_width_reach_the_bus() -> None:
    with ModelRig("e440 e680 66e542 66e782 e544 e784 f4") as rig:
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
    # ecx = 0x1b: rdmsr, out; ecx = 0x12345: rdmsr, wrmsr; out
    code = "b9 1b000000 0f32 e780 b9 45230100 0f32 0f30 e784 f4"
    with ModelRig(code) as rig:
        assert rig.run() == HALTED
        assert [entry[3] for entry in rig.bus.log] == [0xFEE00900, 0]
        assert rig.vm.msrs.unknown == {0x12345: 2}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("vector", "fault", "skip"),
    [
        (0, "31c9 f7f1", 2),  # xor ecx, ecx; div ecx: #DE
        (3, "cc", 0),  # int3: RIP already behind
        (6, "0f0b", 2),  # ud2
        (0x40, "cd40", 0),  # int 0x40
    ],
    ids=["divide", "breakpoint", "invalid-opcode", "software"],
)
def test_exception_goes_through_the_guests_idt_and_returns(
    bits: int, vector: int, fault: str, skip: int
) -> None:
    size = bits // 8
    # handler: count in [0x2000], step over the instruction, return
    step = "83042400" if bits == 32 else "4883042400"
    handler = ("ff05 00200000" if bits == 32 else "ff0425 00200000") + step[:-2] + f"{skip:02x}"
    handler += "cf" if bits == 32 else "48cf"
    with ModelRig(load_idt(bits) + fault * 3 + "f4", bits) as rig:  # type: ignore[arg-type]
        with_idt(rig, bits)
        gate(rig, vector, HANDLER, bits)
        put(rig, HANDLER, handler)
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 4) == (3).to_bytes(4, "little"), size


def test_page_faults_arrive_one_after_the_other_with_their_address() -> None:
    # The handler drops the error code, adds CR2 to [0x2000] and steps over `mov al, [rbx]` (2 bytes).
    handler = "4883c408 0f20d0 48010425 00200000 48830424 02 48cf"
    unmapped = 0x1_0000_0000  # behind the 4 GiB that the entry code maps
    code = load_idt(64) + "48bb 0000000001000000" + "8a03" * 5 + "f4"
    with ModelRig(code, 64) as rig:
        with_idt(rig, 64)
        gate(rig, 14, HANDLER, 64)
        put(rig, HANDLER, handler)
        assert rig.run() == HALTED
        assert struct.unpack("<Q", rig.ram_at(0x2000, 8))[0] == 5 * unmapped


def test_page_fault_has_its_error_code() -> None:
    # The handler writes the error code, steps over the faulting write and returns.
    handler = "58 890425 00200000 48830424 02 48cf"
    code = load_idt(64) + "48bb 0000000001000000" + "8803" + "f4"  # mov [rbx], al
    with ModelRig(code, 64) as rig:
        with_idt(rig, 64)
        gate(rig, 14, HANDLER, 64)
        put(rig, HANDLER, handler)
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 1) == b"\x02"  # a write, in supervisor mode, to a page that is not present


def test_exception_without_a_usable_idt_is_a_triple_fault() -> None:
    with ModelRig(load_idt(64) + "0f0b f4", 64) as rig:
        rig.ram.writable.view[0x1000:0x100A] = struct.pack("<HQ", 0, IDT)
        assert isinstance(rig.run(), Shutdown)


def test_missing_gate_becomes_a_double_fault() -> None:
    with ModelRig(load_idt(64) + "0f0b", 64) as rig:
        with_idt(rig, 64)
        gate(rig, 8, HANDLER, 64)
        put(rig, HANDLER, "e680 f4")
        assert rig.run() == HALTED
        assert rig.bus.log[0][:2] == ("out", 0x80)


@pytest.mark.parametrize("bits", [32, 64])
def test_interrupts_wait_for_sti_and_are_delivered_in_order(bits: int) -> None:
    # Each handler writes its vector at [0x2000 + n], n counted in ebx; the guest halts until both came.
    handlers = {0x30: "30", 0x41: "41"}
    ret = "48cf" if bits == 64 else "cf"
    code = load_idt(bits) + "31db e680 fb f4 83fb02 75fa fa f4"
    interrupts = ScriptedInterrupts(0x30, 0x41)
    with ModelRig(code, bits, interrupts=interrupts) as rig:  # type: ignore[arg-type]
        with_idt(rig, bits)
        for number, (vector, byte) in enumerate(handlers.items()):
            address = HANDLER + 0x100 * number
            gate(rig, vector, address, bits)
            put(rig, address, f"c683 00200000 {byte} ffc3 {ret}")
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 2) == b"\x30\x41"
        assert rig.bus.log[0][:2] == ("out", 0x80)


def test_interrupt_interrupts_a_busy_loop_that_polls_a_port() -> None:
    code = load_idt(64) + "31db fb ec 85db 74fb fa f4"  # sti; 1: in al, dx; test ebx, ebx; jz 1b
    interrupts = ScriptedInterrupts()
    with ModelRig(code, 64, interrupts=interrupts) as rig:
        with_idt(rig, 64)
        gate(rig, 0x50, HANDLER, 64)
        put(rig, HANDLER, "ffc3 48cf")
        timer = threading.Timer(0.05, lambda: interrupts.vectors.append(0x50))
        timer.start()
        assert rig.run() == HALTED
        timer.join()


def test_code_that_the_guest_rewrites_runs_as_rewritten() -> None:
    # 100 times: patch `mov al, n` in RAM, call it, add al to [0x2000]
    code = "b9 64000000 880d 01202000 b8 00202000 ffd0 0fb6c0 0105 00200000 49 75e7 f4"
    with ModelRig(code) as rig:
        put(rig, 0x202000, "b0 00 c3")
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 4) == sum(range(1, 101)).to_bytes(4, "little")


def test_code_rewritten_after_its_page_was_data_runs_as_rewritten() -> None:
    """A store-heavy page turns into code, is executed, then written to again: the engine must notice."""
    code = (
        "bf 00202000 b9 00040000 b8 c3c3c3c3 f3ab"  # fill the page with RET
        "bf 00202000 c707 b001c390 ffd7 8ad8"  # mov al, 1; ret: call it
        "c707 b002c390 ffd7 00c3"  # the same with 2
        "c747f0 00000000 c707 b004c390 ffd7 00c3"  # after a write elsewhere, with 4
        "881d 00200000 f4"
    )
    with ModelRig(code) as rig:
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 1) == b"\x07"


def test_code_rewritten_through_another_virtual_address_runs_as_rewritten() -> None:
    """Two virtual pages of one physical page: writes through one (at 5 GiB), execution through the other."""
    code = (
        "e680"
        "48bf 0020204001000000 48be 0020200000000000"  # rdi = 5 GiB + 0x202000, rsi = 0x202000
        "c707 b001c390 c707 b001c390"  # the first write makes the page's TLB entry dirty
        "ffd6 88c3"
        "c707 b002c390 ffd6 00c3"
        "c707 b004c390 ffd6 00c3"
        "881c25 00200000 f4"
    )
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
    with ModelRig("8a042500202000 e680 88042500202000 e680 f4", 64) as rig:
        rig.bus.on_write_port[0x80] = lambda: seen.append(rig.ram_at(entry, 1)[0])
        assert rig.run() == HALTED
    assert seen == [0xA3, 0xE3]


def test_invlpg_of_a_large_page_forgets_all_of_it() -> None:
    # Two loads in the third 2 MiB; behind INVLPG of the first, the second finds what is mapped now.
    code = "e680 8a042500204000 8a042500304000 e681 e680 0f013c2500204000 8a042500304000 e681 f4"
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
    payload = bytes.fromhex("c6042500200000 55 e680 8a042500202000 e681")
    with ModelRig(in_user_mode(payload), 64) as rig:

        def close_second_page() -> None:
            struct.pack_into("<Q", rig.ram.writable.view, PAGE_TABLES + 0x2000 + 8, 0x200083)

        rig.bus.on_write_port[0x80] = close_second_page
        assert isinstance(rig.run(), Shutdown | KvmInternalError)
        assert rig.ram_at(0x2000, 1) == b"\x55"
        assert [port for _, port, _, _ in rig.bus.log] == [0x80]


def test_code_that_a_device_rewrites_runs_as_rewritten() -> None:
    code = "b8 00202000 ffd0 e681 e680 b8 00202000 ffd0 e681 f4"
    with ModelRig(code) as rig:
        put(rig, 0x202000, "b0 11 c3")

        def dma() -> None:
            put(rig, 0x202001, "22")
            rig.vm.memory_written(0x202001, 1)  # type: ignore[arg-type]

        rig.bus.on_write_port[0x80] = dma
        assert rig.run() == HALTED
        assert [value for kind, port, _, value in rig.bus.log if port == 0x81] == [0x11, 0x22]


def test_string_copy_is_right_where_virtual_is_not_physical() -> None:
    """Virtual 4 MiB shows physical 0, virtual 6 MiB physical 2 MiB; the copy crosses pages on both sides."""
    code = "e68048be 0098400000000000 48bf 0004610000000000 b9 00020000 f348a5 f4"
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
        ("fc", b"abcdefgh", b"abcdefgh"),  # forwards
        ("fd be 07200000 bf 07302000", b"abcdefgh", b"abcdefgh"),  # backwards from the end
    ],
)
def test_string_copy_honours_direction(setup: str, source: bytes, expected: bytes) -> None:
    code = "be 00200000 bf 00302000 b9 08000000" + setup + "f3a4 f4"
    with ModelRig(code) as rig:
        rig.ram.writable.view[0x2000 : 0x2000 + len(source)] = source
        assert rig.run() == HALTED
        assert rig.ram_at(0x203000, len(expected)) == expected


def test_overlapping_copy_repeats_the_pattern() -> None:
    with ModelRig("be 00200000 bf 02200000 b9 10000000 f3a4 893d 00302000 f4") as rig:
        rig.ram.writable.view[0x2000:0x2002] = b"xy"
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 18) == b"xy" * 9
        assert rig.ram_at(0x203000, 4) == (0x2012).to_bytes(4, "little")


def test_string_fill_leaves_the_registers_that_the_instruction_leaves() -> None:
    code = "b8 78563412 bf 00302000 b9 00010000 f3ab 893d 00200000 890d 04200000 f4"
    with ModelRig(code) as rig:
        assert rig.run() == HALTED
        assert rig.ram_at(0x203000, 0x400) == bytes.fromhex("78563412") * 0x100
        assert rig.ram_at(0x2000, 8) == struct.pack("<II", 0x203400, 0)


def test_string_copy_into_a_readonly_slot_stores_every_element() -> None:
    with ModelRig("be 00200000 bf 00000f00 b9 06000000 f3a4 f4") as rig:
        rig.ram.writable.view[0x2000:0x2006] = b"flash!"
        assert rig.run() == HALTED
        assert bytes(value for kind, _, _, value in rig.bus.log if kind == "write") == b"flash!"


def test_stop_ends_a_loop_that_does_nothing() -> None:
    with ModelRig("ebfe") as rig:
        threading.Timer(0.05, rig.vcpu.stop).start()
        assert rig.run() == Interrupted()


def test_stop_ends_a_wait_for_an_interrupt_that_never_comes() -> None:
    with ModelRig("fb f4", interrupts=ScriptedInterrupts()) as rig:
        threading.Timer(0.05, rig.vcpu.stop).start()
        assert rig.run() == Interrupted()


def test_stopping_and_going_on_loses_and_repeats_nothing() -> None:
    """A read-modify-write loop, stopped every millisecond: each of three million increments happens once."""
    code = "b9 c0c62d00 ff05 00200000 49 75f7 f4"
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
    with ModelRig("ff05 00200000 f4") as rig:
        assert rig.run() == HALTED
        rig.vcpu.reset()
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 1) == b"\x02"


def test_two_machines_in_one_process_do_not_mix_registers() -> None:
    code = "b9 1b000000 0f32 e780 f4"
    with ModelRig(code) as one, ModelRig(code) as two:
        two.vm.msrs.write(0x1B, 0xFEE00800)
        assert one.run() == HALTED
        assert two.run() == HALTED
        assert one.bus.log[0][3] == 0xFEE00900
        assert two.bus.log[0][3] == 0xFEE00800
