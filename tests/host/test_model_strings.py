"""REP MOVS and REP STOS, which are executed a page at a time, behave as if by elements (Intel SDM volume 2, REP)."""

from __future__ import annotations

import struct

import pytest
from support.assembler import assemble
from support.guest_rig import ModelRig

from casemate.guests.entry import CODE64, PAGE_TABLES
from casemate.host.exits import DebugEvent, Hlt
from casemate.host.model.cpu.engine import RCX, RDI
from casemate.host.model.vcpu import ModelVcpu

HALTED = Hlt(interrupts_enabled=False)
IDT_POINTER, IDT, HANDLER, PAGE_FAULT, DEBUG = 0x1000, 0x200000, 0x201000, 14, 1
SEEN = 0x2000
SMALL, TABLE = 0x400000, 0x2F0000
"""Addresses that small pages show: the first 2 MiB of memory."""
HOLE = 0x12000
"""A page of them that is missing until port 0x81 is written."""
SHOW_SMALL = "out 0x80, al; mov rax, cr3; mov cr3, rax;"
CODE, SOURCE = 0x202000, 0x210FF8


class Rig(ModelRig):
    """With a handler for one vector; OUT to port 0x80 makes the small pages, to port 0x81 the missing one."""

    def __init__(self, code: str, vector: int = PAGE_FAULT, handler: str = "hlt") -> None:
        super().__init__(f"lidt [{IDT_POINTER}]; {code}", 64)
        self.put(IDT_POINTER, struct.pack("<HQ", 256 * 16 - 1, IDT))
        self.put(
            IDT + vector * 16, struct.pack("<HHBBHQ", HANDLER & 0xFFFF, CODE64, 0, 0x8E, HANDLER >> 16, 0)
        )
        self.put(HANDLER, handler)
        self.bus.on_write_port |= {0x80: self.show, 0x81: lambda: self.enter(HOLE, 3)}

    def enter(self, page: int, attributes: int) -> None:
        struct.pack_into("<Q", self.ram.writable.view, TABLE + page // 0x1000 * 8, page | attributes)

    def show(self) -> None:
        struct.pack_into("<Q", self.ram.writable.view, PAGE_TABLES + 0x2000 + 8 * (SMALL >> 21), TABLE | 3)
        for number in range(512):
            self.enter(number * 0x1000, 3 * (number * 0x1000 != HOLE))


@pytest.mark.parametrize(
    ("instruction", "size"),
    [
        ("rep stosb", 1),
        ("rep stosd", 4),
        ("rep stosq", 8),
        ("rep movsb", 1),
        ("rep movsd", 4),
        ("rep movsq", 8),
    ],
)
@pytest.mark.parametrize("before", [0x800, 0x7F8 - 5], ids=["aligned", "across"])
def test_a_fault_is_at_the_element_that_meets_it(instruction: str, size: int, before: int) -> None:
    """The handler sees how far it went, makes the page, and the instruction goes on."""
    start, count = SMALL + HOLE - before, 0x1000 // size
    handler = f"""
            mov [{SEEN}], rcx
            mov [{SEEN + 8}], rdi
            mov [{SEEN + 16}], rsi
            push rax
            mov rax, cr2
            mov [{SEEN + 24}], rax
            pop rax
            out 0x81, al
            add rsp, 8
            iretq
    """
    code = f"""
            {SHOW_SMALL}
            mov rax, 0x1122334455667788
            mov edi, {start}
            mov esi, {SOURCE}
            mov ecx, {count}
            {instruction}
            mov [{SEEN + 32}], rcx
            mov [{SEEN + 40}], rdi
            hlt
    """
    moves, whole = instruction.startswith("rep movs"), before // size
    source = bytes(range(256)) * 16 if moves else (0x1122334455667788).to_bytes(8, "little")[:size] * count
    with Rig(code, PAGE_FAULT, handler) as rig:
        rig.put(SOURCE, source)
        assert rig.run() == HALTED
        rcx, rdi, rsi, cr2, rcx_after, rdi_after = struct.unpack("<6Q", rig.ram_at(SEEN, 48))
        assert (rcx, rdi) == (count - whole, start + whole * size)
        assert rsi == SOURCE + (whole * size if moves else 0)
        assert cr2 == SMALL + HOLE
        assert (rcx_after, rdi_after) == (0, start + 0x1000)
        assert rig.ram_at(HOLE - before, 0x1000) == source


def test_a_fault_of_the_source_is_at_the_element_that_meets_it() -> None:
    code = f"{SHOW_SMALL} mov esi, {SMALL + HOLE - 0x123}; mov edi, {SOURCE + 0x456}; mov ecx, 0x1000; rep movsb; hlt"
    handler = f"mov [{SEEN}], rcx; mov [{SEEN + 8}], rsi; mov [{SEEN + 16}], rdi; hlt"
    with Rig(code, PAGE_FAULT, handler) as rig:
        rig.put(HOLE - 0x123, bytes(range(0x100)) + bytes(range(0x23)))
        assert rig.run() == HALTED
        assert struct.unpack("<3Q", rig.ram_at(SEEN, 24)) == (
            0x1000 - 0x123,
            SMALL + HOLE,
            SOURCE + 0x456 + 0x123,
        )
        assert rig.ram_at(SOURCE + 0x456, 0x124) == bytes(range(0x100)) + bytes(range(0x23)) + b"\0"


@pytest.mark.parametrize("size", [1, 4, 8])
@pytest.mark.parametrize("distance", [1, 3, 8, -1, -8])
@pytest.mark.parametrize("alias", [0, SMALL], ids=["same", "alias"])
def test_an_overlapping_copy_goes_by_elements(size: int, distance: int, alias: int) -> None:
    """Also where another address shows the same memory."""
    place, count, letter = 0x210F00, 0x200 // size, {1: "b", 4: "d", 8: "q"}[size]
    place -= 0x200000 if alias else 0
    ends = f"mov esi, {place}; mov edi, {place + distance + alias}; mov ecx, {count}"
    code = f"{SHOW_SMALL} {ends}; rep movs{letter}; hlt"
    with Rig(code) as rig:
        memory = bytearray((7 * number) % 251 for number in range(0x300))
        rig.put(place - 0x40, bytes(memory))
        for element in range(count):
            at = 0x40 + element * size
            memory[at + distance : at + distance + size] = bytes(memory[at : at + size])
        assert rig.run() == HALTED
        assert rig.ram_at(place - 0x40, 0x300) == bytes(memory)


@pytest.mark.parametrize("instruction", ["rep stosb", "rep movsb"])
def test_backwards_is_backwards(instruction: str) -> None:
    start = f"mov esi, {SOURCE + 8}; mov edi, {SOURCE + 0x108}; mov ecx, 8; mov al, 0x55"
    code = f"{start}; std; {instruction}; cld; mov [{SEEN}], rdi; hlt"
    with Rig(code) as rig:
        rig.put(SOURCE + 1, b"abcdefgh")
        assert rig.run() == HALTED
        assert (
            rig.ram_at(SOURCE + 0x100, 10)
            == b"\0" + (b"\x55" * 8 if "stos" in instruction else b"abcdefgh") + b"\0"
        )
        assert rig.ram_at(SEEN, 8) == struct.pack("<Q", SOURCE + 0x100)


@pytest.mark.parametrize("instruction", ["rep stosb", "rep movsb"])
def test_a_single_step_is_one_element(instruction: str) -> None:
    code = f"""
            mov esi, {SOURCE}
            mov edi, {SOURCE + 0x100}
            mov ecx, 5
            pushfq
            or qword [rsp], 0x100
            popfq
            {instruction}
            mov eax, [{SEEN}]
            hlt
    """
    handler = f"inc dword [{SEEN}]; test ecx, ecx; jne on; and qword [rsp + 16], -257; on: iretq"
    with Rig(code, DEBUG, handler) as rig:
        assert rig.run() == HALTED
        assert rig.ram_at(SEEN, 4) == (5).to_bytes(4, "little")


@pytest.mark.parametrize("instruction", ["rep movsb", "rep stosb"])
def test_code_that_is_written_over_runs_as_written(instruction: str) -> None:
    """A function is called, written over, called, and put back, again and again."""
    code = f"""
            mov ebx, 50
    again:  mov eax, {CODE}
            call rax
            mov esi, {SOURCE}
            mov edi, {CODE}
            mov ecx, 3
            mov al, 0x90
            {instruction}
            mov eax, {CODE}
            call rax
            mov esi, {SOURCE + 8}
            mov edi, {CODE}
            mov ecx, 3
            rep movsb
            dec ebx
            jne again
            mov [{SEEN}], r8
            hlt
    """
    with Rig(code) as rig:
        counts = assemble("inc r8d", 64)
        rig.put(CODE, counts + assemble("ret", 64))
        rig.put(SOURCE, b"\x90" * 3)
        rig.put(SOURCE + 8, counts)
        assert rig.run() == HALTED
        assert rig.ram_at(SEEN, 8) == struct.pack("<Q", 50)


@pytest.mark.parametrize(("segment", "source", "target"), [("es", 0x2100, 0x16100), ("ds", 0x12100, 0x6100)])
def test_segments_of_32_bit_code_have_bases(segment: str, source: int, target: int) -> None:
    """One begins at 64 KiB; the pages of its offsets without that were touched before."""
    code = f"""
            mov ebx, 0x2000
    touch:  or byte [ebx], 0
            add ebx, 0x1000
            cmp ebx, 0x9000
            jb touch
            lgdt [{IDT_POINTER}]
            mov eax, 8
            mov {segment}, ax
            mov esi, 0x2100
            mov edi, 0x6100
            mov ecx, 0x1800
            rep movsb
            hlt
    """
    with ModelRig(code, 32) as rig:
        rig.put(IDT_POINTER, struct.pack("<HIHQQ", 15, IDT_POINTER + 8, 0, 0, 0x00CF_9301_0000_FFFF))
        pattern = bytes(reversed(range(256))) * 0x18
        rig.put(source, pattern)
        assert rig.run() == HALTED
        assert rig.ram_at(target, len(pattern)) == pattern


@pytest.mark.parametrize("instruction", ["rep stosb", "rep movsb"])
def test_a_watched_byte_stops_the_guest_behind_its_element(instruction: str) -> None:
    code = f"mov esi, {SOURCE}; mov edi, {SOURCE + 0x100}; mov ecx, 0x80; {instruction}; hlt"
    with Rig(code) as rig:
        assert isinstance(rig.vcpu, ModelVcpu)
        rig.vcpu.engine.set_breakpoints([], [(SOURCE + 0x123, 1, False)])
        assert isinstance(rig.run(), DebugEvent)
        assert rig.vcpu.engine.read_many((RCX, RDI)) == [0x80 - 0x24, SOURCE + 0x124]
