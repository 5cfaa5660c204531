"""Writes that KVM executes by itself, beyond the table of behaviours: INS in its forms, loads from MMIO, x87."""

from __future__ import annotations

import itertools

import pytest
from contract_hosts import END, READ, ContractRig, HostName, on_each_host
from support.guest_rig import PROTECTED

from casemate.guests.entry import Bits
from casemate.guests.stores import DEVICE, PORT
from casemate.host.exits import Interrupted, MemoryFault

each_protection = pytest.mark.parametrize("readonly_slot", [True, False], ids=["slot", "mapping"])
REGISTERS = "mov eax, ecx; out 0x88, eax; mov eax, edi; out 0x8c, eax"
"""ECX and EDI to ports."""


def ins(count: int, at: int, code: str, *, down: bool = False) -> str:
    """32-bit or 64-bit code that sets up ECX, EDI and DX, runs ``code``, and tells the registers."""
    setup = f"mov ecx, {count}; mov edi, {PROTECTED + at}; mov dx, {PORT}; {'std' if down else 'cld'}"
    return f"{setup}; {code}; {REGISTERS} {END}"


def run(rig: ContractRig, readonly_slot: bool) -> None:
    """Let the port count, protect the page, run to the end."""
    values = itertools.cycle(range(1, 0x100))
    rig.bus.on_read = lambda: rig.bus.answers.update({PORT: next(values)})
    protect(rig, readonly_slot)
    assert rig.run() == Interrupted()
    assert rig.ended
    assert rig.ram_at(PROTECTED, 0x1000) == bytes(0x1000)


def protect(rig: ContractRig, readonly_slot: bool) -> None:
    if readonly_slot:
        rig.replace_slot(readonly=True)
    else:
        rig.protect(READ)


def told(rig: ContractRig) -> tuple[int, int]:
    """ECX, and EDI as an offset."""
    ecx, edi = (value for kind, port, _, value in rig.accesses if kind == "out" and port in (0x88, 0x8C))
    return ecx, edi - PROTECTED


def stores(rig: ContractRig) -> list[tuple[int, int, int]]:
    return [(gpa - PROTECTED, size, value) for kind, gpa, size, value in rig.accesses if kind == "write"]


def kinds(rig: ContractRig) -> str:
    """i for each element that was read, w for each write, in order."""
    return "".join(kind[0] for kind, *_ in rig.accesses if kind != "out")


@on_each_host
@each_protection
@pytest.mark.parametrize("bits", [32, 64])
def test_rep_ins_reads_all_and_stores_eight_bytes_at_a_time(
    host: HostName, readonly_slot: bool, bits: Bits
) -> None:
    with ContractRig(host, ins(6, 0x20, "rep insw"), bits) as rig:
        run(rig, readonly_slot)
        words = range(6)
        data = b"".join(word.to_bytes(2, "little") for word in words)
        assert kinds(rig) == "iiiiiiww"
        assert stores(rig) == [
            (0x20, 8, int.from_bytes(data[:8], "little")),
            (0x28, 4, int.from_bytes(data[8:], "little")),
        ]
        assert told(rig) == (0, 0x2C)


@on_each_host
@each_protection
@pytest.mark.parametrize(
    ("code", "size"),
    [
        ("insb", 1),
        ("insw", 2),
        ("insd", 4),
        ("db 0x48; insd", 4),  # REX.W
        ("db 0x66, 0x48; insd", 4),
    ],
)
def test_ins_without_a_prefix_leaves_the_count_alone(
    host: HostName, readonly_slot: bool, code: str, size: int
) -> None:
    with ContractRig(host, ins(6, 0x20, code), 64, user=True) as rig:
        value = 0x44332211 & (1 << 8 * size) - 1
        rig.bus.answers[PORT] = value
        protect(rig, readonly_slot)
        assert rig.run() == Interrupted()
        assert stores(rig) == [(0x20, size, value)]
        assert ("in", PORT, size, value) in rig.accesses
        assert told(rig) == (6, 0x20 + size)


@on_each_host
@each_protection
def test_ins_downwards_forgets_what_it_read_ahead(host: HostName, readonly_slot: bool) -> None:
    with ContractRig(host, ins(3, 0x20, "rep insw", down=True), 64, user=True) as rig:
        run(rig, readonly_slot)
        assert kinds(rig) == "iiiwiiwiw"
        assert stores(rig) == [(0x20, 2, 0), (0x1E, 2, 3), (0x1C, 2, 5)]
        assert told(rig) == (0, 0x1A)


@on_each_host
@each_protection
def test_ins_downwards_reads_ahead_to_the_page_only(host: HostName, readonly_slot: bool) -> None:
    with ContractRig(host, ins(4, 2, "rep insb", down=True), 64, user=True) as rig:
        run(rig, readonly_slot)
        assert kinds(rig) == "iiwiwiwi"
        assert stores(rig) == [(2, 1, 0), (1, 1, 2), (0, 1, 3)]
        assert rig.ram_at(PROTECTED - 1, 1) == b"\x04"
        assert told(rig) == (0, -2)


@on_each_host
@each_protection
def test_rep_ins_comes_from_memory_into_the_page(host: HostName, readonly_slot: bool) -> None:
    with ContractRig(host, ins(5, -2, "rep insb"), 64, user=True) as rig:
        run(rig, readonly_slot)
        assert rig.ram_at(PROTECTED - 2, 2) == b"\x00\x01"
        assert stores(rig) == [(0, 3, 0x040302)]
        assert told(rig) == (0, 3)


@on_each_host
@each_protection
def test_rep_ins_reads_1024_bytes_ahead(host: HostName, readonly_slot: bool) -> None:
    with ContractRig(host, ins(1100, 0x20, "rep insb"), 64, user=True) as rig:
        run(rig, readonly_slot)
        assert kinds(rig) == "i" * 1024 + "w" * 128 + "i" * 76 + "w" * 10
        assert stores(rig)[-1] == (0x20 + 1096, 4, 0x4F4E4D4C)
        assert told(rig) == (0, 0x20 + 1100)


@on_each_host
@each_protection
def test_rep_ins_ends_with_the_page(host: HostName, readonly_slot: bool) -> None:
    with ContractRig(host, ins(4, 0xFFC, "rep insb"), 64, user=True) as rig:
        run(rig, readonly_slot)
        assert stores(rig) == [(0xFFC, 4, 0x03020100)]
        assert told(rig) == (0, 0x1000)


@on_each_host
def test_rep_ins_of_32_bit_addresses_in_64_bit_code(host: HostName) -> None:
    code = """
        mov eax, 1; shl rax, 32
        or rdi, rax; or rcx, rax
        db 0x67                         # 32-bit addresses
        rep insb
        mov rax, rdi; shr rax, 32; out 0x90, eax
        mov rax, rcx; shr rax, 32; out 0x90, eax
    """
    with ContractRig(host, ins(3, 0x20, code), 64, user=True) as rig:
        run(rig, readonly_slot=True)
        assert stores(rig) == [(0x20, 3, 0x020100)]
        assert told(rig) == (0, 0x23)
        assert [value for kind, port, _, value in rig.accesses if port == 0x90] == [0, 0]


@on_each_host
@pytest.mark.parametrize(("code", "size"), [("rep insw", 2), ("rep insd", 4)])
def test_rep_ins_in_real_mode(host: HostName, code: str, size: int) -> None:
    setup = f"mov ax, 0xf000; mov es, ax; mov edi, 0x12341000; mov ecx, 0x12340002; mov dx, {PORT}; cld"
    with ContractRig(host, f"{setup}; {code}; {REGISTERS} {END}", 16) as rig:
        element = 0x44332211 & (1 << 8 * size) - 1
        rig.bus.answers[PORT] = element
        assert rig.run() == Interrupted()
        assert rig.ended
        value = element * (1 + (1 << 8 * size))
        assert stores(rig) == [(0xF1000 - PROTECTED, 2 * size, value)]
        assert told(rig) == (0x12340000, 0x12341000 + 2 * size - PROTECTED)


@on_each_host
@pytest.mark.parametrize(
    "code",
    [
        f"mov esp, {PROTECTED + 0x28}; push qword [rbp]",
        f"mov edi, {PROTECTED + 0x20}; mov rsi, rbp; movsq",
    ],
    ids=["push", "movsq"],
)
def test_whatever_loads_from_mmio_gets_past_a_protected_mapping(host: HostName, code: str) -> None:
    text = f"mov ebp, {DEVICE}; {code} {END}"
    with ContractRig(host, text, 64, user=True) as rig:
        rig.bus.answers |= {DEVICE: 0x1122334455667788, DEVICE + 4: 0x11223344}
        rig.protect(READ)
        assert rig.run() == Interrupted()
        assert stores(rig) == [(0x20, 8, 0x1122334455667788)]
        assert rig.ram_at(PROTECTED, 0x40) == bytes(0x40)


@on_each_host
def test_load_from_mmio_before_the_store_does_not_help(host: HostName) -> None:
    code = f"mov ebp, {DEVICE}; mov rax, [rbp]; mov [{PROTECTED}], rax {END}"
    with ContractRig(host, code, 64, user=True) as rig:
        rig.protect(READ)
        assert isinstance(rig.run(), MemoryFault)


@on_each_host
@pytest.mark.parametrize(("code", "value"), [("fnstcw", 0x37F), ("fnstsw", 0)])
def test_two_x87_stores_are_emulated(host: HostName, code: str, value: int) -> None:
    with ContractRig(host, f"fninit; mov ebx, {PROTECTED + 0x20}; {code} [rbx] {END}", 64, user=True) as rig:
        rig.replace_slot(readonly=True)
        assert rig.run() == Interrupted()
        assert stores(rig) == [(0x20, 2, value)]
