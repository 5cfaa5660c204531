"""Slots of the modelled VM: what writes, loads and changes of the host mapping do (Linux api.rst)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct

import pytest
from support.guest_rig import PROTECTED, ModelRig

from casemate.address import Hva
from casemate.errors import HostError
from casemate.guests.entry import CODE64, PAGE_TABLES
from casemate.host.exits import Hlt, MemoryFault
from casemate.memory.backing import Backing

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


def test_access_of_eight_bytes_where_no_memory_is_comes_as_one() -> None:
    value, nowhere = 0x1122_3344_5566_7788, 0x70_0000
    code = f"48b8 {value.to_bytes(8, 'little').hex()} bb {nowhere.to_bytes(4, 'little').hex()}"
    with ModelRig(bytes.fromhex(code + "488903 488b0b 48890c25 00002000 f4"), 64) as rig:
        rig.bus.answers[nowhere] = value + 1
        assert rig.run() == HALTED
        assert rig.bus.log == [("write", nowhere, 8, value), ("load", nowhere, 8, value + 1)]
        assert int.from_bytes(rig.ram_at(0x200000, 8), "little") == value + 1


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


HIGH = {"max": 0xFF << 32, "max,phys-bits=46": 1 << 45, "max,phys-bits=52": 3 << 50}
"""An address that a processor has, by its choice."""
SECOND_GIB, PDPT, PD = 0x40000000, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x3000


def point(entry_at: int, value: int) -> str:
    return f"mov rax, {value}; mov [{entry_at}], rax; mov rax, cr3; mov cr3, rax;"


@pytest.mark.parametrize("cpu", HIGH)
def test_memory_at_the_processors_highest_addresses_is_reached(cpu: str) -> None:
    code = point(PD, HIGH[cpu] | 0x83)
    code += f"mov byte [{SECOND_GIB + 5}], 0x41; mov al, [{SECOND_GIB + 6}]; mov [0x2000], al; hlt"
    with ModelRig(code, 64, cpu=cpu) as rig:
        high = Backing("high", 2 << 20)
        high.writable.view[6] = 0x42
        rig.add(9, HIGH[cpu], 2 << 20, high.writable.hva)
        assert rig.run() == HALTED
        assert (high.writable.view[5], rig.ram_at(0x2000, 1)) == (0x41, b"B")
        assert rig.ram_at(PD, 1)[0] & 0x60 == 0x60, "accessed and dirty"


def test_page_tables_can_be_at_such_addresses_themselves() -> None:
    at = HIGH["max,phys-bits=46"]
    code = point(PDPT + 8, at | 3) + f"mov byte [{SECOND_GIB + 5}], 0x41; hlt"
    with ModelRig(code, 64, cpu="max,phys-bits=46") as rig:
        tables = Backing("high", 2 << 20)
        tables.writable.view[0:8] = (0x200083).to_bytes(8, "little")
        rig.add(9, at, 2 << 20, tables.writable.hva)
        assert rig.run() == HALTED
        assert rig.ram_at(0x200005, 1) == b"A"
        assert tables.writable.view[0] & 0x60 == 0x60


@pytest.mark.parametrize(("cpu", "bit"), [("max", 40), ("max,phys-bits=46", 46), ("max,phys-bits=46", 51)])
def test_bits_that_the_processor_does_not_have_are_reserved_in_page_tables(cpu: str, bit: int) -> None:
    code = "lidt [0x1000];" + point(PD, 1 << bit | 0x83) + f"mov al, [{SECOND_GIB}]; hlt"
    with ModelRig(code, 64, cpu=cpu) as rig:
        rig.put(0x1000, struct.pack("<HQ", 256 * 16 - 1, 0x200000))
        rig.put(0x200000 + 14 * 16, struct.pack("<HHHHQ", 0x3000, CODE64, 0x8E00, 0, 0))
        rig.put(0x3000, "pop rax; mov [0x2000], rax; hlt")
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 1)[0] == 9, "present, and reserved bits"


@pytest.mark.parametrize("cpu", HIGH)
def test_what_no_slot_backs_at_high_addresses_is_mmio(cpu: str) -> None:
    code = point(PD, HIGH[cpu] | 0x83) + f"mov [{SECOND_GIB + 8}], eax; hlt"
    with ModelRig(code, 64, cpu=cpu) as rig:
        assert rig.run() == HALTED
        assert rig.bus.log[0][:3] == ("write", HIGH[cpu] + 8, 4)


def test_slots_end_where_the_processors_addresses_do() -> None:
    with ModelRig("hlt") as rig, pytest.raises(HostError, match="out of reach"):
        rig.add(9, 1 << 40, 0x1000, rig.ram.writable.hva)
