"""What a guest's access to protected memory does: the table of behaviours against every host."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest
from contract_hosts import END, PAGE, READ, WRITE, ContractRig, HostName, family, on_each_host
from support.assembler import assemble
from support.guest_rig import PROTECTED

from casemate.address import Hva
from casemate.guests.stores import FILLER
from casemate.host.exits import Interrupted, KvmInternalError, MemoryFault, Shutdown, VmExit
from casemate.testing.behaviours import (
    BEHAVIOURS,
    PROLOGUE,
    SEEN_WORDS,
    TARGET,
    Behaviour,
    End,
    Outcome,
    Protection,
    render,
)

PAGE_DOC = Path(__file__).parents[2] / "docs" / "design" / "kvm-behaviour.md"
FILLED = bytes((FILLER,)) * PAGE


def name(row: Behaviour) -> str:
    words = f"{row.name}-{row.protection.name.lower()}"
    return (words if row.user else f"{words}-supervisor").replace(" ", "_").replace(",", "")


def protect(rig: ContractRig, protection: Protection) -> bytes | mmap.mmap | memoryview:
    """Protect the page; returns what shows its contents."""
    if protection is Protection.PRIVATE:
        private = mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        private[:] = FILLED
        hva = Hva(ctypes.addressof(ctypes.c_char.from_buffer(private)))
        rig.replace_slot(hva)
        rig.protect(READ, hva)
        return private
    match protection:
        case Protection.SLOT:
            rig.replace_slot(readonly=True)
        case Protection.MAPPING:
            rig.protect(READ)
        case Protection.VIEW:
            rig.replace_slot(Hva(rig.ram.map_again(readonly=True).hva + PROTECTED))
    return rig.ram.writable.view[PROTECTED : PROTECTED + PAGE]


def outcome(rig: ContractRig, vm_exit: VmExit) -> Outcome:
    stores = tuple((gpa - TARGET, size, value) for kind, gpa, size, value in rig.accesses if kind == "write")
    if isinstance(vm_exit, MemoryFault):
        return Outcome(End.FAULT, stores)
    if isinstance(vm_exit, KvmInternalError):
        return Outcome(End.ERROR, stores)
    if isinstance(vm_exit, Shutdown):  # these guests have no handlers
        return Outcome(End.UNDEFINED, stores)
    assert vm_exit == Interrupted()
    assert rig.ended, "the guest did not go on behind the access"
    return Outcome(End.MMIO, stores)


@on_each_host
@pytest.mark.parametrize("row", BEHAVIOURS, ids=name)
def test_store_does_what_the_table_says(host: HostName, row: Behaviour) -> None:
    with ContractRig(host, PROLOGUE + row.code + assemble(END, 64), 64, user=row.user) as rig:
        rig.ram.writable.view[PROTECTED : PROTECTED + PAGE] = FILLED
        contents = protect(rig, row.protection)
        vm_exit = rig.run()
        assert outcome(rig, vm_exit) == row.on(family(host))
        assert bytes(contents) == FILLED
        if isinstance(vm_exit, MemoryFault):
            assert vm_exit.gpa == TARGET
            assert vm_exit.size
            assert_stands_on_it(rig, row.code)


def assert_stands_on_it(rig: ContractRig, code: bytes) -> None:
    found = rig.vcpu.code_at_rip()
    assert found is not None
    text, bits = found
    assert bits == 64
    # Some rows begin with instructions that only prepare.
    rest = next(code[at:] for at in range(len(code)) if text.startswith(code[at:] + assemble(END, 64)))
    assert len(rest) >= 1


@on_each_host
def test_fault_is_restartable_once_the_mapping_is_writable(host: HostName) -> None:
    with ContractRig(host, f"inc dword [{PROTECTED}];" * 3 + END, 64, user=True) as rig:
        rig.protect(READ)
        assert isinstance(rig.run(), MemoryFault)
        assert isinstance(rig.run(), MemoryFault)
        rig.protect(WRITE)
        assert rig.run() == Interrupted()
        assert rig.ram_at(PROTECTED, 1) == b"\x03"


@on_each_host
def test_page_already_stored_to_faults_once_it_is_protected(host: HostName) -> None:
    code = f"mov byte [{PROTECTED}], 0x5a; out 0x80, al; mov byte [{PROTECTED}], 0xa5 {END}"
    with ContractRig(host, code, 64, user=True) as rig:
        rig.bus.on_write_port[0x80] = lambda: rig.protect(READ)
        assert isinstance(rig.run(), MemoryFault)
        assert rig.ram_at(PROTECTED, 1) == b"\x5a"


@on_each_host
def test_store_can_be_stepped_over(host: HostName) -> None:
    with ContractRig(host, f"mov byte [{PROTECTED}], 0x5a {END}", 64, user=True) as rig:
        rig.protect(READ)
        fault = rig.run()
        assert isinstance(fault, MemoryFault)
        assert fault.rip is not None
        rig.vcpu.set_rip(fault.rip + 8)
        assert rig.run() == Interrupted()
        assert rig.ended
        assert rig.ram_at(PROTECTED, 1) == b"\x00"


@on_each_host
def test_protected_memory_can_be_read_and_executed(host: HostName) -> None:
    code = f"mov al, [{PROTECTED}]; out 0x80, al; mov eax, {PROTECTED}; call rax; out 0x80, al {END}"
    with ContractRig(host, code, 64, user=True) as rig:
        rig.put(PROTECTED, "mov al, 0x42; ret")
        rig.protect(READ)
        assert rig.run() == Interrupted()
        assert [value for _, _, _, value in rig.accesses] == [0xB0, 0x42]


@on_each_host
def test_writer_of_the_other_view_is_seen_at_once(host: HostName) -> None:
    code = f"mov al, [{PROTECTED}]; out 0x80, al; mov al, [{PROTECTED}]; out 0x81, al {END}"
    with ContractRig(host, code, 64, user=True) as rig:
        rig.replace_slot(Hva(rig.ram.map_again(readonly=True).hva + PROTECTED))

        def write() -> None:
            rig.ram.writable.view[PROTECTED] = 0x77

        rig.bus.on_write_port[0x80] = write
        assert rig.run() == Interrupted()
        assert [value for _, _, _, value in rig.accesses] == [0, 0x77]


@pytest.mark.parametrize("row", BEHAVIOURS, ids=name)
def test_every_row_says_who_saw_it(row: Behaviour) -> None:
    assert row.seen
    assert set(row.seen) <= set(SEEN_WORDS)
    assert all(why for _, why in row.differs.values())


def test_the_page_is_what_the_table_renders() -> None:
    assert PAGE_DOC.read_text() == render(), (
        "python -m casemate.testing.behaviours > docs/design/kvm-behaviour.md"
    )
