"""The assembler of the tests' guests: known encodings, and what iced-x86's decoder reads back."""

from __future__ import annotations

import pytest
from iced_x86 import Decoder

from casemate.guests.entry import Bits
from support.assembler import AssemblyError, assemble

ENCODINGS: list[tuple[Bits, str, str]] = [
    (16, "mov ax, 0; mov ss, ax; mov byte [cs:0x700], 0x41; iret", "b80000 8ed0 2ec606000741 cf"),
    (16, "mov dx, 0x3f8; out dx, al", "baf803 ee"),
    (16, "mov eax, cr0; lidt [bx + si]", "0f20c0 0f0118"),
    (32, "in al, 0x40; in ax, 0x42; out 0x84, eax; out dx, al", "e440 66e542 e784 ee"),
    (
        32,
        "mov ecx, 0x1b; rdmsr; inc dword [0x2000]; add dword [esp], 2",
        "b91b000000 0f32 ff0500200000 83042402",
    ),
    (32, "mov al, [0xf0000]; mov [0x200000], al", "a000000f00 a200002000"),
    (32, "mov dword [edi - 0x10], 0x90c301b0; call edi", "c747f0b001c390 ffd7"),
    (32, "and eax, 0xfffffff0; cmp eax, 0xfee00900", "83e0f0 3d0009e0fe"),
    (32, "jmp 0x18:0x1000", "ea001000001800"),
    (
        64,
        "lidt [0x1000]; mov al, [0x402000]; invlpg [0x402000]",
        "0f011c2500100000 8a042500204000 0f013c2500204000",
    ),
    (64, "mov rbx, 0x100000000; mov rax, -1; mov eax, -1", "48bb0000000001000000 48c7c0ffffffff b8ffffffff"),
    (64, "mov rsi, [fs:rbx + rcx*4 + 8]; lock cmpxchg [rdi], rax", "64488b748b08 f0480fb107"),
    (64, "mov rax, cr2; mov cr3, rax; ltr eax; mov ds, eax", "0f20d0 0f22d8 0f00d8 8ed8"),
    (64, "rep movsq; repne scasb; cld; iretq", "f348a5 f2ae fc 48cf"),
    (64, "fstp dword [rbx]; fnstsw [0x2060]; movups [rbx], xmm1", "d91b dd3c2560200000 0f110b"),
    (64, "push 0x33; push 0x230000; or dword [rsp], 0x100", "6a33 6800002300 810c2400010000"),
    (64, "push 0x202; ret; leave; cbw; fnstenv [rbx]; fstp qword [rbx]", "6802020000 c3 c9 6698 d933 dd1b"),
    (16, "push 0x202; ret; pushf", "680202 c3 9c"),
]


@pytest.mark.parametrize(
    ("bits", "source", "encoding"), ENCODINGS, ids=[source for _, source, _ in ENCODINGS]
)
def test_statements_have_the_encodings_of_the_manuals(bits: Bits, source: str, encoding: str) -> None:
    assert assemble(source, bits) == bytes.fromhex(encoding)


def test_decoder_reads_what_was_written() -> None:
    source = """
        start:  xor ebx, ebx
                add rbx, [r8 + r9*8 - 0x40]
                jne start
                movzx eax, word [0x3000 + 2]
    """
    code = assemble(source, 64)
    assert [str(instruction) for instruction in Decoder(64, code)] == [
        "xor ebx,ebx",
        "add rbx,[r8+r9*8-40h]",
        "jne short 0",
        "movzx eax,word ptr [3002h]",
    ]


def test_branches_are_short_where_they_can_be_and_near_where_they_must() -> None:
    def jump_over(count: int) -> bytes:
        return assemble(f"jmp end; {'nop; ' * count} end: hlt")

    assert jump_over(0x7F)[:2] == b"\xeb\x7f"
    assert jump_over(0x80)[:5] == b"\xe9\x80\x00\x00\x00"


def test_labels_are_addresses_from_the_origin_on() -> None:
    code = assemble("mov eax, text; jmp $; text: db 1, 'ab'; dest: jmp dest", origin=0x1000)
    assert code == bytes.fromhex("b807100000 ebfe 01 6162 ebfe")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("inc [0x20]", "inc: byte, word, dword or qword"),
        ("movzx eax, [0x20]", "movzx: byte"),
        ("frobnicate eax", "no 32-bit instruction: frobnicate eax"),
        ("mov rax, 1", "no 32-bit instruction: mov rax, 1"),
        ("add al, 0x1000", "no 32-bit instruction: add al, 0x1000"),
        ("x: mov eax, y", "no such name: y"),
        ("jmp nowhere", "no such name: nowhere"),
    ],
)
def test_what_is_no_statement_is_named(source: str, says: str) -> None:
    with pytest.raises(AssemblyError, match=says):
        assemble(source)
