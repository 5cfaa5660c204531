"""I/O APIC: its two registers, edge and level pins, remote IRR and EOI, destinations."""

from __future__ import annotations

import pytest

from casemate.devices.ioapic import PINS, VERSION_82093AA, VERSION_ICH9, Ioapic
from casemate.devices.lapic import Lapic, Register
from casemate.testing.manual_clock import ManualClock

MASKED, LEVEL, REMOTE_IRR = 1 << 16, 1 << 15, 1 << 14


class Pair:
    """An I/O APIC and the enabled local APIC that it talks to."""

    def __init__(self) -> None:
        self.lapic = Lapic(ManualClock())
        self.lapic.write_mmio(Register.SVR, 4, 0x1FF)
        self.ioapic = Ioapic(self.lapic)

    def read(self, index: int) -> int:
        self.ioapic.write_mmio(0x00, 4, index)
        return self.ioapic.read_mmio(0x10, 4)

    def write(self, index: int, value: int) -> None:
        assert self.ioapic.write_mmio(0x00, 4, index)
        assert self.ioapic.write_mmio(0x10, 4, value)

    def route(self, pin: int, low: int, destination: int = 0) -> None:
        self.write(0x11 + 2 * pin, destination << 24)
        self.write(0x10 + 2 * pin, low)

    def take(self) -> int:
        assert self.lapic.pending()
        return self.lapic.acknowledge()

    def end(self) -> None:
        self.lapic.write_mmio(Register.EOI, 4, 0)


def test_ioapic_identifies_itself_with_24_masked_pins() -> None:
    pair = Pair()
    assert pair.read(0x01) == 0x0017_0020
    assert all(pair.read(0x10 + 2 * pin) == MASKED for pin in range(PINS))
    pair.write(0x00, 0xFFFF_FFFF)
    assert pair.read(0x00) == pair.read(0x02) == 0x0F00_0000
    assert pair.read(0xFF) == 0
    pair.write(0xFF, 1)
    assert pair.ioapic.read_mmio(0x20, 4) == 0
    assert not pair.ioapic.write_mmio(0x20, 4, 0)


def test_ioapic_entry_keeps_writable_bits_only() -> None:
    pair = Pair()
    pair.route(5, 0xFFFF_FFFF, destination=0xAB)
    assert pair.read(0x1A) == 0x0001_AFFF
    assert pair.read(0x1B) == 0xAB00_0000


def test_ioapic_edge_is_delivered_once_per_rise() -> None:
    pair = Pair()
    pair.route(4, 0x44)
    pair.ioapic.set_irq(4, True)
    pair.ioapic.set_irq(4, True)
    assert pair.take() == 0x44
    pair.end()
    assert not pair.lapic.pending()
    pair.ioapic.set_irq(4, False)
    pair.ioapic.set_irq(4, True)
    assert pair.take() == 0x44


def test_ioapic_edge_on_a_masked_pin_is_lost_but_a_level_is_not() -> None:
    pair = Pair()
    pair.ioapic.set_irq(4, True)
    pair.ioapic.set_irq(11, True)
    pair.route(4, 0x44)
    assert not pair.lapic.pending()
    pair.route(11, LEVEL | 0x4B)
    assert pair.take() == 0x4B


def test_ioapic_level_repeats_after_eoi_until_the_line_falls() -> None:
    pair = Pair()
    pair.route(11, LEVEL | 0x4B)
    pair.ioapic.set_irq(11, True)
    for _ in range(3):
        assert pair.read(0x26) & REMOTE_IRR
        assert pair.take() == 0x4B
        assert not pair.lapic.pending()
        pair.end()
    pair.ioapic.set_irq(11, False)
    assert pair.take() == 0x4B
    pair.end()
    assert not pair.lapic.pending()
    assert not pair.read(0x26) & REMOTE_IRR


def test_ioapic_level_does_not_queue_behind_remote_irr() -> None:
    pair = Pair()
    pair.route(11, LEVEL | 0x4B)
    for _ in range(5):
        pair.ioapic.set_irq(11, True)
        pair.ioapic.set_irq(11, False)
    pair.take()
    pair.end()
    assert not pair.lapic.pending()


def test_ioapic_change_to_edge_clears_remote_irr() -> None:
    pair = Pair()
    pair.route(11, LEVEL | 0x4B)
    pair.ioapic.set_irq(11, True)
    pair.route(11, MASKED | 0x4B)
    assert not pair.read(0x26) & REMOTE_IRR


def test_ioapic_delivers_to_this_cpu_only_when_addressed() -> None:
    pair = Pair()
    pair.lapic.write_mmio(Register.LDR, 4, 0x01 << 24)
    cases = {
        3: (0x43, 0x07),
        4: (0x44, 0x00),
        5: (0x845, 0x01),
        6: (0x846, 0x02),
        7: (0x147, 0xFF),
        8: (0x448, 0),
    }
    for pin, (low, destination) in cases.items():
        pair.route(pin, low, destination)
        pair.ioapic.set_irq(pin, True)
    arrived = set()
    while pair.lapic.pending():
        arrived.add(pair.take())
        pair.end()
    assert arrived == {0x44, 0x45, 0x47}


def test_ioapic_reset_masks_all_pins() -> None:
    pair = Pair()
    pair.route(4, 0x44)
    assert pair.ioapic.enabled(4)
    pair.ioapic.reset()
    assert not pair.ioapic.enabled(4)


@pytest.mark.parametrize(("mode", "event"), [(0x400, 1), (0x500, 2)], ids=["nmi", "init"])
@pytest.mark.parametrize("trigger", [0, LEVEL])
def test_ioapic_sends_nmi_and_init_as_edges(mode: int, event: int, trigger: int) -> None:
    pair = Pair()
    pair.route(5, mode | trigger)
    pair.ioapic.set_irq(5, True)
    assert pair.lapic.record.events == event
    assert not pair.read(0x1A) & REMOTE_IRR
    pair.lapic.record.events = 0
    pair.ioapic.set_irq(5, True)
    assert not pair.lapic.has_event


@pytest.mark.parametrize(
    ("entry", "destination", "level", "passes"),
    [
        (0x700, 0, True, True),
        (0x700, 0, False, False),
        (0x700, 3, True, False),
        (MASKED | 0x700, 0, True, False),
        (0x040, 0, True, False),
    ],
    ids=["asserted", "quiet", "for-another", "masked", "fixed"],
)
def test_ioapic_passes_the_8259_on(entry: int, destination: int, level: bool, passes: bool) -> None:
    pair = Pair()
    pair.ioapic.set_irq(0, level)
    pair.route(0, entry, destination)
    pair.lapic.write_mmio(Register.LVT_LINT0, 4, MASKED)
    assert pair.lapic.accepts_ext_int() is passes


@pytest.mark.parametrize(("version", "ends"), [(VERSION_ICH9, True), (VERSION_82093AA, False)])
def test_ioapic_has_an_eoi_register_from_the_ich9_on(version: int, ends: bool) -> None:
    pair = Pair()
    pair.ioapic = Ioapic(pair.lapic, version)
    pair.route(5, LEVEL | 0x50)
    pair.ioapic.set_irq(5, True)
    assert pair.ioapic.write_mmio(0x40, 4, 0x51) is ends
    assert pair.read(0x1A) & REMOTE_IRR
    pair.ioapic.set_irq(5, False)
    pair.ioapic.write_mmio(0x40, 4, 0x50)
    assert bool(pair.read(0x1A) & REMOTE_IRR) is not ends
