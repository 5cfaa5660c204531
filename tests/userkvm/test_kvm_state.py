"""State of the modelled KVM that needs no guest: instructions of ports, 8259s and 8254, private pages (Intel SDM)."""

from __future__ import annotations

import pytest

from casemate.abi.kvm.structs import CpuidEntry2, Sregs
from casemate.userkvm.control_registers import known_cr4, problem_of
from casemate.userkvm.guest_memfd import PrivateRanges
from casemate.userkvm.legacy_chips import LegacyChips
from casemate.userkvm.port_instructions import port_instruction


@pytest.mark.parametrize(
    ("code", "bits", "expected"),
    [
        ("ec", 64, (1, 1)),
        ("ed", 64, (1, 4)),
        ("66ed", 64, (2, 2)),
        ("ed", 16, (1, 2)),
        ("66ed", 16, (2, 4)),
        ("e471", 32, (2, 1)),
        ("ee", 64, (1, 0)),
        ("e770", 64, (2, 0)),
        ("48ed", 64, (2, 4)),
        ("f36c", 64, (0, 0)),
        ("", 64, (0, 0)),
    ],
)
def test_instructions_of_ports_have_their_length_and_size(
    code: str, bits: int, expected: tuple[int, int]
) -> None:
    assert port_instruction(bytes.fromhex(code), bits) == expected


def _programmed() -> LegacyChips:
    chips = LegacyChips()
    for port, value in (
        *((0x20, 0x11), (0x21, 0x08), (0x21, 0x04), (0x21, 0x03), (0x21, 0xB8)),
        *((0xA0, 0x11), (0xA1, 0x70), (0xA1, 0x02), (0xA1, 0x01), (0xA1, 0x8E)),
        *((0x4D1, 0x0C), (0x43, 0x34), (0x40, 0xA9), (0x40, 0x04), (0x43, 0xB6), (0x42, 0x12), (0x42, 0x34)),
    ):
        chips.note(port, value)
    return chips


def test_what_8259s_and_8254_are_programmed_to_is_what_another_pair_gets() -> None:
    chips, other, written = _programmed(), LegacyChips(), []

    def write(port: int, size: int, value: int) -> None:
        written.append((port, value))

    for chip in (0, 1):
        state = chips.pic_state(chip, lambda port, size: 0, lambda port, size, value: None)
        other.set_pic_state(chip, state, write, lambda line: None)
        assert other.pic_state(chip, lambda port, size: 0, lambda port, size, value: None) == state
    other.set_pit_state(chips.pit_state(), write)
    assert other.pit_state() == chips.pit_state()
    assert {(0x21, 0x08), (0x21, 0xB8), (0xA1, 0x70), (0xA1, 0x8E), (0x4D1, 0x0C)} <= set(written)
    assert [value for port, value in written if port == 0x40] == [0xA9, 0x04]


def test_requested_interrupts_are_requested_again() -> None:
    lines: list[int] = []
    state = _programmed().pic_state(1, lambda port, size: 0b1000_0001, lambda port, size, value: None)
    LegacyChips().set_pic_state(1, state, lambda port, size, value: None, lines.append)
    assert lines == [8, 15]


def test_private_pages_are_cut_out_of_ranges_and_joined_to_them() -> None:
    ranges = PrivateRanges()
    ranges.set(0x1000, 0x4000, private=True)
    ranges.set(0x2000, 0x3000, private=False)
    assert list(ranges.runs(0, 0x5000)) == [
        (0, 0x1000, False),
        (0x1000, 0x2000, True),
        (0x2000, 0x3000, False),
        (0x3000, 0x4000, True),
        (0x4000, 0x5000, False),
    ]
    assert [ranges.contains(page) for page in (0xFFF, 0x1000, 0x2000, 0x3FFF)] == [False, True, False, True]


def test_control_registers_that_no_processor_takes_are_refused_in_words() -> None:
    bits = known_cr4([CpuidEntry2(7, 0, 0, 0, 1 << 7, 0, 0)])
    assert bits >> 20 & 1
    assert not bits >> 21 & 1
    assert problem_of(Sregs(cr0=0x80000011, cr4=1 << 20), bits) == ""
    assert "CR4" in problem_of(Sregs(cr4=1 << 21), bits)
    assert "CR0" in problem_of(Sregs(cr0=1 << 31), bits)
    assert "long mode" in problem_of(Sregs(cr0=0x80000001, efer=1 << 8), bits)
    assert "APIC" in problem_of(Sregs(apic_base=1 << 10), bits)
