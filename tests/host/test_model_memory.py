"""Slots of the modelled VM: what writes, loads and changes of the host mapping do (Linux api.rst)."""

from __future__ import annotations

import ctypes
import errno
import mmap

import pytest
from support.guest_rig import PROTECTED, ModelRig

from casemate.address import Hva
from casemate.errors import HostError
from casemate.host.exits import Hlt, MemoryFault

HALTED = Hlt(interrupts_enabled=False)
MOV_STORE = f"mov byte [{PROTECTED}], 0x5a;"
libc = ctypes.CDLL(None, use_errno=True)


def protect(rig: ModelRig, prot: int) -> None:
    hva = Hva(rig.ram.writable.hva + PROTECTED)
    assert libc.mprotect(ctypes.c_void_p(hva), ctypes.c_size_t(0x1000), prot) == 0
    rig.vm.mapping_changed(hva, 0x1000)


def test_store_to_ram_lands() -> None:
    with ModelRig(MOV_STORE + "hlt") as rig:
        assert rig.run() == HALTED
        assert rig.ram_at(PROTECTED, 1) == b"\x5a"
        assert rig.bus.log == []


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        ("mov byte [0xf0000], 0x77", [("write", 0xF0000, 1, 0x77)]),
        ("mov word [0xf0000], 0x1234", [("write", 0xF0000, 2, 0x1234)]),
        ("mov dword [0xf0000], 0x12345678", [("write", 0xF0000, 4, 0x12345678)]),
    ],
)
def test_store_to_a_readonly_slot_goes_to_the_bus(
    write: str, expected: list[tuple[str, int, int, int]]
) -> None:
    with ModelRig(write + "; mov al, [0xf0000]; mov [0x200000], al; hlt") as rig:
        before = bytes(rig.rom.writable.view)
        assert rig.run() == HALTED
        assert rig.bus.log == expected
        assert bytes(rig.rom.writable.view) == before
        assert rig.ram_at(0x200000, 1) == before[:1]


def test_store_to_a_protected_mapping_faults_and_changes_nothing() -> None:
    code = f"mov eax, 0x44332211; mov ebx, {PROTECTED}; mov [ebx], eax; add eax, 1; hlt"
    with ModelRig(code) as rig:
        protect(rig, mmap.PROT_READ)
        fault = rig.run()
        assert isinstance(fault, MemoryFault)
        assert (fault.gpa, fault.size, fault.value) == (PROTECTED, 4, 0x44332211)
        code_at_rip = rig.vcpu.code_at_rip()
        assert code_at_rip is not None
        assert code_at_rip[0].startswith(b"\x89\x03")
        assert code_at_rip[1] == 32
        assert fault.rip == rig.vcpu.rip()
        assert rig.ram_at(PROTECTED, 4) == bytes(4)


def test_faulted_store_lands_when_the_mapping_becomes_writable() -> None:
    code = f"mov ebx, {PROTECTED};" + "inc dword [ebx];" * 3 + "hlt"
    with ModelRig(code) as rig:
        protect(rig, mmap.PROT_READ)
        assert isinstance(rig.run(), MemoryFault)
        assert isinstance(rig.run(), MemoryFault)
        protect(rig, mmap.PROT_READ | mmap.PROT_WRITE)
        assert rig.run() == HALTED
        assert rig.ram_at(PROTECTED, 1) == b"\x03"


def test_store_after_protecting_a_page_already_stored_to_faults() -> None:
    code = f"{MOV_STORE} out 0x80, al; mov byte [{PROTECTED}], 0xa5; hlt"
    with ModelRig(code) as rig:
        rig.bus.on_write_port[0x80] = lambda: protect(rig, mmap.PROT_READ)
        assert isinstance(rig.run(), MemoryFault)
        assert rig.ram_at(PROTECTED, 1) == b"\x5a"


def test_reading_and_executing_a_protected_mapping_works() -> None:
    code = f"mov al, [{PROTECTED}]; call next; next: pop eax; mov eax, {PROTECTED}; call eax; hlt"
    with ModelRig(code) as rig:
        rig.put(PROTECTED, "mov al, 0x42; ret")
        protect(rig, mmap.PROT_READ)
        assert rig.run() == HALTED


def test_deleted_slot_becomes_mmio_and_returns() -> None:
    load = f"mov al, [{PROTECTED}];"
    code = f"{MOV_STORE} out 0x80, al; {MOV_STORE} {load} out 0x81, al; {load} hlt"
    with ModelRig(code) as rig:
        hva = Hva(rig.ram.writable.hva + PROTECTED)
        rig.bus.answers[PROTECTED] = 0x99
        rig.bus.on_write_port[0x80] = lambda: rig.vm.delete_slot(3)
        rig.bus.on_write_port[0x81] = lambda: rig.add(3, PROTECTED, 0x1000, hva)
        assert rig.run() == HALTED
        assert [entry for entry in rig.bus.log if entry[0] in ("load", "write")] == [
            ("write", PROTECTED, 1, 0x5A),
            ("load", PROTECTED, 1, 0x99),
        ]
        assert rig.ram_at(PROTECTED, 1) == b"\x5a"


def test_hundreds_of_flips_keep_memory_and_mmio_apart() -> None:
    code = f"""
                mov ecx, 300
        again:  out 0x80, al            # removes the slot
                {MOV_STORE}             # goes to the bus
                out 0x81, al            # returns the slot
                inc dword [{PROTECTED + 4}]
                dec ecx
                jne again
                hlt
    """
    with ModelRig(code) as rig:
        hva = Hva(rig.ram.writable.hva + PROTECTED)
        rig.bus.on_write_port[0x80] = lambda: rig.vm.delete_slot(3)
        rig.bus.on_write_port[0x81] = lambda: rig.add(3, PROTECTED, 0x1000, hva)
        assert rig.run() == HALTED
        assert rig.bus.log.count(("write", PROTECTED, 1, 0x5A)) == 300
        assert rig.ram_at(PROTECTED, 8) == bytes(4) + (300).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("number", "gpa", "size", "expected"),
    [
        (9, PROTECTED - 0x1000, 0x2000, errno.EEXIST),
        (9, 0x700800, 0x1000, errno.EINVAL),
        (3, 0x700000, 0x1000, errno.EINVAL),
    ],
    ids=["overlap", "misaligned", "live-number"],
)
def test_slot_rules_are_kvms(number: int, gpa: int, size: int, expected: int) -> None:
    with ModelRig("hlt") as rig:
        with pytest.raises(HostError) as caught:
            rig.add(number, gpa, size, rig.ram.writable.hva)
        assert caught.value.errno == expected


def test_deleting_a_slot_that_is_not_there_is_enoent() -> None:
    with ModelRig("hlt") as rig:
        with pytest.raises(HostError) as caught:
            rig.vm.delete_slot(77)
        assert caught.value.errno == errno.ENOENT


def test_unmapped_address_reads_what_the_bus_says() -> None:
    with ModelRig("mov eax, [0xfe400000]; mov [0x200000], eax; hlt") as rig:
        rig.bus.answers[0xFE400000] = 0xCAFEF00D
        assert rig.run() == HALTED
        assert rig.ram_at(0x200000, 4) == (0xCAFEF00D).to_bytes(4, "little")


def test_exception_on_the_bus_reaches_the_caller() -> None:
    def fail() -> None:
        raise HostError("pwrite", errno.ENOSPC, "variables")

    with ModelRig("out 0x80, al; hlt") as rig:
        rig.bus.on_write_port[0x80] = fail
        with pytest.raises(HostError, match="pwrite"):
            rig.run()
