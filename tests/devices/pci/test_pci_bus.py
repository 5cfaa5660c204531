"""PCI bus: the two ways into configuration space show the same functions, and nothing where nothing is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.devices.pci.bus import PciHost
from casemate.devices.pci.config import PciFunction

ENABLE = 1 << 31


def host() -> PciHost:
    pci = PciHost()
    pci.add(0, 0, PciFunction(0x8086, 0x29C0, class_code=0x060000))
    pci.add(0x1F, 0, PciFunction(0x8086, 0x2918, class_code=0x060100, multi_function=True))
    pci.add(0x1F, 3, PciFunction(0x8086, 0x2930, class_code=0x0C0500))
    return pci


def ecam(bus: int, device: int, function: int, register: int) -> int:
    return bus << 20 | device << 15 | function << 12 | register


def by_port(pci: PciHost, bus: int, device: int, function: int, register: int, size: int) -> int:
    address = ENABLE | bus << 16 | device << 11 | function << 8 | register & 0xFC
    assert pci.write_port(0, 4, address)
    value = pci.read_port(4 + (register & 3), size)
    assert value is not None
    return value


def test_scan_finds_exactly_the_functions_that_were_added() -> None:
    pci = host()
    places = [(bus, device, fn) for bus in (0, 1, 255) for device in range(32) for fn in range(8)]
    expected = {(0, 0, 0), (0, 0x1F, 0), (0, 0x1F, 3)}
    assert {p for p in places if by_port(pci, *p, 0, 4) != 0xFFFF_FFFF} == expected
    assert {p for p in places if pci.read_mmio(ecam(*p, 0), 4) != 0xFFFF_FFFF} == expected


@given(
    device=st.sampled_from([0, 1, 0x1F]),
    register=st.integers(0, 63),
    lane=st.sampled_from([(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (2, 2), (0, 4)]),
)
def test_ports_and_ecam_agree(device: int, register: int, lane: tuple[int, int]) -> None:
    pci = host()
    offset, size = 4 * register + lane[0], lane[1]
    assert by_port(pci, 0, device, 0, offset, size) == pci.read_mmio(ecam(0, device, 0, offset), size)


def test_store_by_either_way_is_seen_by_the_other() -> None:
    pci = host()
    assert pci.write_mmio(ecam(0, 0x1F, 3, 4), 2, 0x0003)
    assert by_port(pci, 0, 0x1F, 3, 4, 2) == 0x0003
    assert pci.write_port(4, 1, 0x07)
    assert pci.read_mmio(ecam(0, 0x1F, 3, 4), 1) == 0x07


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_extended_space_reads_zero_where_a_function_is_and_ones_elsewhere(size: int) -> None:
    pci = host()
    assert pci.write_mmio(ecam(0, 0, 0, 0x100), size, 0)
    assert pci.read_mmio(ecam(0, 0, 0, 0x100), size) == 0
    assert pci.read_mmio(ecam(0, 2, 0, 0x100), size) == (1 << 8 * size) - 1
    assert pci.write_mmio(ecam(0, 2, 0, 0x100), size, 0)


def test_address_register_is_32_bits_wide_only() -> None:
    pci = host()
    assert not pci.write_port(0, 1, 0x80)
    assert not pci.write_port(2, 2, 0x8000)
    assert pci.read_port(0, 2) is None
    assert pci.write_port(0, 4, 0xFFFF_FFFF)
    assert pci.read_port(0, 4) == 0x80FF_FFFC


def test_data_port_without_enable_reads_ones_and_stores_nothing() -> None:
    pci = host()
    pci.write_port(0, 4, 0x0000_0004)
    assert pci.read_port(4, 2) == 0xFFFF
    pci.write_port(4, 2, 0x0007)
    assert by_port(pci, 0, 0, 0, 4, 2) == 0


def test_reset_reaches_every_function() -> None:
    pci = host()
    pci.write_mmio(ecam(0, 0x1F, 3, 4), 2, 0x0003)
    pci.reset()
    assert pci.read_mmio(ecam(0, 0x1F, 3, 4), 2) == 0
    assert pci.read_port(0, 4) == 0
