"""Memory slots on every host: KVM's rules, aliases, flips while the guest runs, page tables in protected memory."""

from __future__ import annotations

import errno
import struct
import threading

import pytest
from contract_hosts import END, PAGE, READ, ContractRig, HostName, family, on_each_host
from support.guest_rig import PROTECTED

from casemate.address import Gpa, GuestRange, Hva
from casemate.errors import HostError
from casemate.host.exits import Interrupted, KvmInternalError, MemoryFault
from casemate.host.slots import MemorySlot
from casemate.memory.backing import Backing

pytestmark = on_each_host

STORE = f"mov byte [{PROTECTED}], 0x5a;"
ALIAS = 0x500000
BY_TURNS = f"""
    {STORE}
    mov al, [{ALIAS}]
    out 0x80, al
    mov byte [{ALIAS}], 0x66
    mov al, [{PROTECTED}]
    out 0x80, al
    {END}
"""
TABLES = 0x600000


@pytest.mark.parametrize(
    ("number", "gpa", "size", "expected"),
    [
        (9, PROTECTED - PAGE, 2 * PAGE, errno.EEXIST),
        (9, 0x700800, PAGE, errno.EINVAL),
        (9, 0x700000, 0x800, errno.EINVAL),
        (3, 0x700000, PAGE, errno.EINVAL),
    ],
    ids=["overlap", "misaligned", "odd-size", "live-number"],
)
def test_slot_that_breaks_a_rule_is_refused(
    host: HostName, number: int, gpa: int, size: int, expected: int
) -> None:
    with ContractRig(host, END) as rig:
        with pytest.raises(HostError) as caught:
            rig.add(number, gpa, size, rig.ram.writable.hva)
        assert caught.value.errno == expected


def test_deleting_a_slot_that_is_not_there_is_enoent(host: HostName) -> None:
    with ContractRig(host, END) as rig:
        with pytest.raises(HostError) as caught:
            rig.vm.delete_slot(77)
        assert caught.value.errno == errno.ENOENT


def test_live_slot_cannot_become_read_only_in_place(host: HostName) -> None:
    with ContractRig(host, END) as rig:
        with pytest.raises(HostError) as caught:
            rig.add(3, PROTECTED, PAGE, rig.protected_hva, readonly=True)
        assert caught.value.errno == errno.EINVAL
        rig.replace_slot(readonly=True)


def test_refused_slot_leaves_the_others_alone(host: HostName) -> None:
    with ContractRig(host, f"{STORE} {END}") as rig:
        with pytest.raises(HostError):
            rig.add(9, PROTECTED, PAGE, rig.protected_hva)
        assert rig.run() == Interrupted()
        assert rig.ram_at(PROTECTED, 1) == b"\x5a"


def test_two_slots_over_the_same_memory_show_the_same_bytes(host: HostName) -> None:
    with ContractRig(host, BY_TURNS) as rig:
        rig.add(9, ALIAS, PAGE, rig.protected_hva)
        assert rig.run() == Interrupted()
        assert [entry[3] for entry in rig.accesses] == [0x5A, 0x66]


def test_read_only_alias_follows_the_writable_slot(host: HostName) -> None:
    with ContractRig(host, BY_TURNS) as rig:
        rig.add(9, ALIAS, PAGE, rig.protected_hva, readonly=True)
        assert rig.run() == Interrupted()
        assert rig.accesses == [("out", 0x80, 1, 0x5A), ("write", ALIAS, 1, 0x66), ("out", 0x80, 1, 0x5A)]


def test_read_only_slot_can_be_executed(host: HostName) -> None:
    with ContractRig(host, f"mov eax, {PROTECTED}; call eax; out 0x80, al {END}") as rig:
        rig.put(PROTECTED, "mov al, 0x42; ret")
        rig.replace_slot(readonly=True)
        assert rig.run() == Interrupted()
        assert rig.accesses == [("out", 0x80, 1, 0x42)]


def test_hundreds_of_flips_keep_memory_and_mmio_apart(host: HostName) -> None:
    code = f"""
                mov ecx, 300
        again:  out 0x80, al            # removes the slot
                {STORE}                 # goes to the bus
                out 0x81, al            # returns the slot, read-only
                mov al, [{PROTECTED}]
                out 0x82, al            # makes it writable
                inc dword [{PROTECTED + 4}]
                dec ecx
                jne again
                {END}
    """
    with ContractRig(host, code) as rig:
        rig.bus.on_write_port[0x80] = lambda: rig.vm.delete_slot(3)
        rig.bus.on_write_port[0x81] = lambda: rig.add(3, PROTECTED, PAGE, rig.protected_hva, readonly=True)
        rig.bus.on_write_port[0x82] = rig.replace_slot
        assert rig.run() == Interrupted()
        assert rig.bus.log.count(("write", PROTECTED, 1, 0x5A)) == 300
        assert rig.ram_at(PROTECTED, 8) == bytes(4) + (300).to_bytes(4, "little")


def test_slot_deleted_under_a_running_vcpu_turns_into_mmio(host: HostName) -> None:
    if host != "kvm":
        pytest.skip("the modelled engine changes slots on the vCPU's thread only")
    with ContractRig(host, f"again: inc byte [{PROTECTED}]; jmp again {END}") as rig:
        threading.Timer(0.02, lambda: rig.vm.delete_slot(3)).start()
        rig.bus.answers[PROTECTED] = 0x10

        def stop_at_the_second() -> None:  # of the first, the load may have been from memory
            if len(rig.bus.log) > 2:
                rig.vcpu.stop()

        rig.bus.on_write = stop_at_the_second
        assert rig.run() == Interrupted()
        assert rig.bus.log[-2:] == [("load", PROTECTED, 1, 0x10), ("write", PROTECTED, 1, 0x11)]


def test_unreadable_host_memory_is_a_fault(host: HostName) -> None:
    if host != "kvm":
        pytest.skip("the modelled engine reads host memory by itself, and would end with this process")
    with ContractRig(host, f"mov al, [{PROTECTED}] {END}", 64, user=True) as rig:
        rig.protect(0)
        assert isinstance(rig.run(), MemoryFault)
        rig.protect(READ)
        assert rig.run() == Interrupted()


@pytest.mark.parametrize("readonly_slot", [True, False], ids=["slot", "mapping"])
def test_page_tables_in_protected_memory_change_nothing_in_it(host: HostName, readonly_slot: bool) -> None:
    """Accessed and dirty bits are set already; even so hosts walk them as if they written."""
    code = f"mov eax, {TABLES}; mov cr3, rax; nop {END}"
    tables = Backing("tables", 4 * PAGE)
    view = tables.writable.view
    struct.pack_into("<Q", view, 0, TABLES + PAGE | 0x23)
    struct.pack_into("<4Q", view, PAGE, TABLES + 2 * PAGE | 0x23, 0, 0, TABLES + 3 * PAGE | 0x23)
    for entry in range(512):
        struct.pack_into("<Q", view, 2 * PAGE + 8 * entry, entry << 21 | 0xE3)
        struct.pack_into("<Q", view, 3 * PAGE + 8 * entry, 3 << 30 | entry << 21 | 0xE3)
    before = bytes(view)
    with ContractRig(host, code, 64) as rig:
        hva = tables.writable.hva if readonly_slot else tables.map_again(readonly=True).hva
        slot = MemorySlot(9, GuestRange(Gpa(TABLES), 4 * PAGE), Hva(hva), readonly_slot)
        rig.vm.add_slot(slot)
        stuck = threading.Timer(1, rig.vcpu.stop)
        stuck.start()
        vm_exit = rig.run()
        stuck.cancel()
        if family(host) in ("model", "kvm_pvm"):
            assert rig.ended
        elif readonly_slot:
            assert isinstance(vm_exit, (Interrupted, KvmInternalError))
        else:
            assert isinstance(vm_exit, MemoryFault)
        assert bytes(view) == before
    tables.close()
