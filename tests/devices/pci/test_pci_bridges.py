"""Host and ISA bridges: the identities firmware looks for, and the windows it places."""

from __future__ import annotations

import pytest

from casemate.devices.pci.i440fx import I440fxHostBridge, Piix3Isa, Piix4Pm
from casemate.devices.pci.q35 import Ich9Lpc, Q35HostBridge

MIB = 1 << 20


class Q35:
    def __init__(self) -> None:
        self.ecam: list[tuple[int | None, int]] = []
        self.bridge = Q35HostBridge(lambda base, size: self.ecam.append((base, size)))


class PmBase:
    def __init__(self) -> None:
        self.moves: list[int | None] = []
        self.lpc = Ich9Lpc(self.moves.append)
        self.piix4 = Piix4Pm(self.moves.append)


def test_bridges_have_the_ids_that_firmware_looks_for() -> None:
    bridges = {
        Q35().bridge: (0x29C0_8086, 0x0600, 0x00),
        PmBase().lpc: (0x2918_8086, 0x0601, 0x80),
        I440fxHostBridge(): (0x1237_8086, 0x0600, 0x00),
        Piix3Isa(): (0x7000_8086, 0x0601, 0x80),
        PmBase().piix4: (0x7113_8086, 0x0680, 0x00),
    }
    for bridge, (device, class_code, header) in bridges.items():
        assert bridge.read_config(0x00, 4) == device
        assert bridge.read_config(0x0A, 2) == class_code
        assert bridge.read_config(0x0E, 1) == header
        assert bridge.read_config(0x2C, 4) == 0x1100_1AF4


def test_ecam_appears_when_firmware_enables_it_and_goes_at_reset() -> None:
    q35 = Q35()
    q35.bridge.write_config(0x64, 4, 0)
    q35.bridge.write_config(0x60, 4, 0xB000_0001)
    assert q35.ecam == [(0xB000_0000, 256 * MIB)]
    q35.bridge.write_config(0x04, 2, 0x0006)
    q35.bridge.write_config(0x60, 4, 0xB000_0001)
    assert len(q35.ecam) == 1
    q35.bridge.reset()
    assert q35.ecam[-1] == (None, 256 * MIB)


@pytest.mark.parametrize(
    ("value", "base", "size"),
    [
        (0xE000_0001, 0xE000_0000, 256),
        (0xE800_0003, 0xE800_0000, 128),
        (0xEC00_0005, 0xEC00_0000, 64),
        (0xFC00_0001, 0xF000_0000, 256),
        (0x10_0000_0001 - 0x1000_0000, 0xF_F000_0000, 256),
    ],
)
def test_ecam_window_has_the_size_and_alignment_of_its_register(value: int, base: int, size: int) -> None:
    q35 = Q35()
    q35.bridge.write_config(0x64, 4, value >> 32)
    q35.bridge.write_config(0x60, 4, value & 0xFFFF_FFFF)
    assert q35.ecam[-1] == (base, size * MIB)


def test_ecam_of_reserved_size_stays_off() -> None:
    q35 = Q35()
    q35.bridge.write_config(0x60, 4, 0xB000_0007)
    assert all(base is None for base, _ in q35.ecam)


def test_lpc_places_the_acpi_block_when_base_and_enable_are_set() -> None:
    """OVMF's order: the base, then ACPI_EN."""
    pm = PmBase()
    assert pm.lpc.read_config(0x40, 4) == 1
    pm.lpc.write_config(0x40, 4, 0x0601)
    assert pm.moves == []
    assert pm.lpc.read_config(0x40, 4) == 0x0601
    pm.lpc.write_config(0x44, 1, 0x80)
    assert pm.moves == [0x600]
    pm.lpc.write_config(0x44, 1, 0x80)
    assert pm.moves == [0x600]
    pm.lpc.write_config(0x40, 2, 0xFFFF)
    assert pm.moves == [0x600, 0xFF80]
    pm.lpc.reset()
    assert pm.moves == [0x600, 0xFF80, None]


def test_piix4_places_the_acpi_block_when_base_and_enable_are_set() -> None:
    pm = PmBase()
    pm.piix4.write_config(0x40, 4, 0xB001)
    assert pm.moves == []
    pm.piix4.write_config(0x80, 1, 0x01)
    assert pm.moves == [0xB000]
    pm.piix4.write_config(0x80, 1, 0x00)
    assert pm.moves == [0xB000, None]


def test_acpi_block_at_port_0_stays_off() -> None:
    pm = PmBase()
    pm.lpc.write_config(0x44, 1, 0x80)
    assert pm.moves == []


def test_lpc_keeps_interrupt_routes_and_rcba() -> None:
    lpc = PmBase().lpc
    for register in (*range(0x60, 0x64), *range(0x68, 0x6C)):
        assert lpc.read_config(register, 1) == 0x80
        lpc.write_config(register, 1, 0x7A)
        assert lpc.read_config(register, 1) == 0x0A
    lpc.write_config(0xF0, 4, 0xFED1_C001)
    assert lpc.read_config(0xF0, 4) == 0xFED1_C001


def test_piix3_keeps_interrupt_routes() -> None:
    piix3 = Piix3Isa()
    piix3.write_config(0x60, 4, 0x0A0B_857A)
    assert piix3.read_config(0x60, 4) == 0x0A0B_850A


@pytest.mark.parametrize(("bridge", "pam"), [(Q35().bridge, 0x90), (I440fxHostBridge(), 0x59)])
def test_pam_registers_keep_their_attribute_bits(bridge: Q35HostBridge | I440fxHostBridge, pam: int) -> None:
    for index in range(7):
        bridge.write_config(pam + index, 1, 0xFF)
    assert [bridge.read_config(pam + index, 1) for index in range(7)] == [0x30] + [0x33] * 6
