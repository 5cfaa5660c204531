"""Writes that KVM's instruction emulator knows or does not, on the model; tests/contract has what every host shows."""

from __future__ import annotations

import struct

import pytest
from support.assembler import assemble
from support.guest_rig import PROTECTED, ModelRig

from casemate.guests.entry import PAGE_TABLES
from casemate.host.exits import Hlt, KvmInternalError
from casemate.host.model.kvm_emulator import split

HALTED = Hlt(interrupts_enabled=False)
PORT = 0x80


def make_readonly(rig: ModelRig) -> None:
    rig.vm.delete_slot(3)
    rig.add(3, PROTECTED, 0x1000, rig.ram.writable.hva, readonly=True)


DIRECTORY, TABLE = PAGE_TABLES + 0x4000, 0x200000
MAP_ONE_PAGE = f"""
    mov dword [{TABLE}], {PROTECTED | 3}
    mov dword [{DIRECTORY}], {TABLE | 3}
    mov rax, cr3
    mov cr3, rax
"""
"""PROTECTED at 2 GiB, and nothing behind it; new CR3."""

X87 = ("fstp dword [rbx]", "fstp qword [rbx]", "fistp dword [rbx]", "fstp qword [r15]")
SETUP = f"fninit; fld1; mov ebx, {PROTECTED + 0x20}; mov r15, rbx;"


@pytest.mark.parametrize("code", X87)
def test_x87_store_of_the_supervisor_ends_the_run_on_it(code: str) -> None:
    with ModelRig(f"{SETUP} {code}; hlt", 64) as rig:
        make_readonly(rig)
        vm_exit = rig.run()
        assert vm_exit == KvmInternalError("KVM internal error EMULATION", rig.vcpu.rip())
        found = rig.vcpu.code_at_rip()
        assert found is not None
        assert found[0].startswith(assemble(code, 64))
        assert rig.bus.log == []


@pytest.mark.parametrize("code", ["fnsave [rbx]", "fnstenv [rbx]", "fbstp [rbx]"])
def test_x87_store_in_many_parts_is_undone_with_the_first(code: str) -> None:
    with ModelRig(f"{SETUP} {code}; hlt", 64) as rig:
        make_readonly(rig)
        assert rig.run() == KvmInternalError("KVM internal error EMULATION", rig.vcpu.rip())
        found = rig.vcpu.code_at_rip()
        assert found is not None
        assert found[0].startswith(assemble(code, 64))
        assert rig.bus.log == []


def test_ins_reads_no_input_for_a_page_that_the_guest_does_not_map() -> None:
    # rep insw from 2 bytes below the page's end: KVM reads as many words ahead as bytes are left.
    setup = f"mov dx, {PORT}; mov ecx, 4; mov edi, 0x80000ffe;"
    with ModelRig(MAP_ONE_PAGE + setup + "rep insw; hlt", 64) as rig:
        make_readonly(rig)
        assert not isinstance(rig.run(), Hlt)
        assert [(kind, at, size) for kind, at, size, _ in rig.bus.log] == [
            ("in", PORT, 2),
            ("write", PROTECTED + 0xFFE, 2),
        ]


def test_instruction_is_found_in_a_code_segment_that_does_not_begin_at_0() -> None:
    # The segment begins at 2 MiB - 32.
    code = f"lgdt [0x1000]; mov dx, {PORT}; mov edi, {PROTECTED + 0x20}; jmp 8:32"
    with ModelRig(code, 32) as rig:
        view = rig.ram.writable.view
        view[0x1000:0x1006] = struct.pack("<HI", 15, 0x1010)
        view[0x1018:0x1020] = struct.pack("<Q", 0x00C09B1FFFE0FFFF | 0xF << 48)
        rig.put(0x200000, "insb; hlt")
        make_readonly(rig)
        assert rig.run() == HALTED
        assert rig.bus.log == [("in", PORT, 1, 0), ("write", PROTECTED + 0x20, 1, 0)]


def test_prefixes_and_rex_are_told_from_the_opcode() -> None:
    found = split(bytes.fromhex("66 67 f3 48 6d"))
    assert (found.prefixes, found.rex, found.opcode, found.length) == (
        frozenset(b"\x66\x67\xf3"),
        0x48,
        0x6D,
        5,
    )
    assert split(bytes.fromhex("d97d00"))[2:4] == (0xD9, 7)
    assert split(b"").opcode == 0
