"""The interrupt controller as the vCPU sees it: routing of ISA interrupts, ExtINT, deadlines."""

from __future__ import annotations

import pytest

from casemate.devices.interrupts import PcInterrupts
from casemate.devices.ioapic import Ioapic
from casemate.devices.lapic import Lapic, Register
from casemate.devices.pic import PicPair
from casemate.devices.pit import Pit
from casemate.devices.serial.uart16550 import Uart16550
from casemate.host.hypervisor import InterruptController
from casemate.testing.manual_clock import ManualClock

TEN_MS = 10_000_000
PIT_TEN_MS = 11_932
MASKED, PERIODIC = 0x10000, 0x20000


class Pc:
    """All sources wired up; the 8259s initialised at 0x20 and 0x28 with everything unmasked."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.lapic = Lapic(self.clock)
        self.ioapic = Ioapic(self.lapic)
        self.pic = PicPair()
        self.pit = Pit(self.clock)
        self.interrupts = PcInterrupts(self.clock, self.lapic, self.pic, self.pit, self.ioapic)
        for chip, base in ((self.pic.master, 0x20), (self.pic.slave, 0x28)):
            chip.write_port(0, 1, 0x11)
            for value in (base, 4, 1):
                chip.write_port(1, 1, value)

    def mask_pic(self, mask: int = 0xFF) -> None:
        self.pic.master.write_port(1, 1, mask)

    def enable_lapic(self, lint0: int = 0x700) -> None:
        self.lapic.write_mmio(Register.SVR, 4, 0x1FF)
        self.lapic.write_mmio(Register.LVT_LINT0, 4, lint0)

    def start_pit(self) -> None:
        for offset, value in ((3, 0x34), (0, PIT_TEN_MS & 0xFF), (0, PIT_TEN_MS >> 8)):
            self.pit.write_port(offset, 1, value)

    def start_lapic_timer(self, count: int = TEN_MS) -> None:
        for register, value in (
            (Register.TIMER_DIVIDE, 0xB),
            (Register.LVT_TIMER, PERIODIC | 0x40),
            (Register.TIMER_INITIAL, count),
        ):
            self.lapic.write_mmio(register, 4, value)

    def route(self, pin: int, entry: int) -> None:
        self.ioapic.write_mmio(0x00, 4, 0x10 + 2 * pin)
        self.ioapic.write_mmio(0x10, 4, entry)


def test_interrupts_fulfil_the_protocol_and_are_quiet_at_power_on() -> None:
    pc = Pc()
    controller: InterruptController = pc.interrupts
    assert controller.deadline() is None
    assert not controller.pending()


@pytest.mark.parametrize("lapic", [False, True])
def test_isa_interrupt_goes_through_the_8259(lapic: bool) -> None:
    pc = Pc()
    if lapic:
        pc.enable_lapic()
    pc.interrupts.irq(12)(True)
    assert pc.interrupts.pending()
    assert pc.interrupts.acknowledge() == 0x2C
    assert not pc.interrupts.pending()


def test_isa_interrupt_is_held_back_by_a_masked_lint0() -> None:
    pc = Pc()
    pc.enable_lapic(lint0=MASKED | 0x700)
    pc.interrupts.irq(4)(True)
    assert not pc.interrupts.pending()


@pytest.mark.parametrize(("irq", "pin"), [(0, 2), (1, 1), (4, 4), (9, 9), (15, 15)])
def test_isa_interrupt_goes_to_its_ioapic_pin(irq: int, pin: int) -> None:
    pc = Pc()
    pc.mask_pic()
    pc.enable_lapic(lint0=MASKED)
    pc.route(pin, 0x30 + pin)
    pc.interrupts.irq(irq)(True)
    assert pc.interrupts.pending()
    assert pc.interrupts.acknowledge() == 0x30 + pin


def test_8259_comes_before_the_local_apic_whatever_the_task_priority() -> None:
    pc = Pc()
    pc.enable_lapic()
    pc.lapic.accept(0xF0, level=False)
    pc.interrupts.irq(4)(True)
    pc.lapic.write_mmio(Register.TPR, 4, 0xE0)
    assert pc.interrupts.acknowledge() == 0x24
    assert pc.interrupts.acknowledge() == 0xF0
    assert not pc.interrupts.pending()


def test_firmware_tick_runs_on_the_lapic_timer_alone() -> None:
    """What OVMF does: 8259 masked, LAPIC timer periodic at 10 ms."""
    pc = Pc()
    pc.mask_pic()
    pc.enable_lapic()
    pc.start_lapic_timer()
    for tick in range(1, 6):
        assert pc.interrupts.deadline() == tick * TEN_MS
        assert not pc.interrupts.pending()
        pc.clock.time = tick * TEN_MS
        assert pc.interrupts.pending()
        assert pc.interrupts.acknowledge() == 0x40
        pc.lapic.write_mmio(Register.EOI, 4, 0)


def test_kernel_tick_runs_on_the_8254_alone() -> None:
    """What Linux without a local APIC does: 8254 in mode 2 through the 8259."""
    pc = Pc()
    pc.mask_pic(0xFA)
    pc.start_pit()
    for _ in range(5):
        deadline = pc.interrupts.deadline()
        assert deadline is not None
        pc.clock.time = deadline - 1
        assert not pc.interrupts.pending()
        pc.clock.time = deadline
        assert pc.interrupts.pending()
        assert pc.interrupts.acknowledge() == 0x20
        pc.pic.master.write_port(0, 1, 0x20)


@pytest.mark.parametrize(
    ("lapic_enabled", "pic_mask", "lint0", "pin", "counts"),
    [
        (False, 0x00, 0x700, MASKED, True),
        (False, 0x01, 0x700, MASKED, False),
        (True, 0x00, 0x700, MASKED, True),
        (True, 0x00, MASKED, MASKED, False),
        (True, 0xFF, MASKED, 0x30, True),
    ],
)
def test_deadline_counts_the_8254_only_if_it_can_interrupt(
    lapic_enabled: bool, pic_mask: int, lint0: int, pin: int, counts: bool
) -> None:
    pc = Pc()
    pc.mask_pic(pic_mask)
    if lapic_enabled:
        pc.enable_lapic(lint0)
    pc.route(2, pin)
    pc.start_pit()
    assert (pc.interrupts.deadline() is not None) is counts
    pc.clock.skip(2 * TEN_MS)
    assert pc.interrupts.pending() is counts


@pytest.mark.parametrize(("count", "expected"), [(TEN_MS // 2, TEN_MS // 2), (TEN_MS * 2, TEN_MS)])
def test_deadline_is_the_earlier_of_both_timers(count: int, expected: int) -> None:
    pc = Pc()
    pc.enable_lapic()
    pc.start_pit()
    pc.start_lapic_timer(count)
    deadline = pc.interrupts.deadline()
    assert deadline is not None
    assert abs(deadline - expected) < 1_000


def test_jump_over_many_ticks_leaves_one_of_the_apic_and_all_of_the_8254() -> None:
    pc = Pc()
    pc.enable_lapic()
    pc.start_pit()
    pc.start_lapic_timer()
    pc.clock.skip(100 * TEN_MS + 1)
    taken = []
    while pc.interrupts.pending():
        taken.append(pc.interrupts.acknowledge())
        if taken[-1] == 0x20:
            pc.pic.master.write_port(0, 1, 0x20)
        else:
            pc.lapic.write_mmio(Register.EOI, 4, 0)
    assert (taken.count(0x20), taken.count(0x40)) == (99, 1)  # a tick of the 8254 is longer than 10 ms
    deadline = pc.interrupts.deadline()
    assert deadline is not None
    assert pc.clock.now() < deadline <= pc.clock.now() + TEN_MS


def test_ticks_through_the_io_apic_wait_for_the_one_before() -> None:
    pc = Pc()
    pc.enable_lapic()
    pc.mask_pic()
    pc.route(2, 0x31)
    pc.start_pit()
    pc.clock.skip(5 * TEN_MS + TEN_MS // 2)
    for tick in range(5):
        assert pc.interrupts.pending()
        assert pc.interrupts.deadline() == 0
        assert pc.interrupts.acknowledge() == 0x31
        assert not pc.lapic.pending()
        pc.lapic.write_mmio(Register.EOI, 4, 0)
        assert pc.lapic.pending() == (tick < 4)  # at once: nobody need look for it
    assert not pc.lapic.hears_edges


def test_deadline_is_over_while_a_device_waits_for_the_cpu() -> None:
    pc = Pc()
    pc.enable_lapic()
    pc.start_lapic_timer()
    pc.interrupts.irq(4)(True)
    assert pc.interrupts.deadline() == 0
    pc.interrupts.acknowledge()
    assert pc.interrupts.deadline() == TEN_MS


def test_watched_device_interrupts_when_its_input_arrived_meanwhile() -> None:
    pc = Pc()
    uart = Uart16550(lambda byte: None, pc.interrupts.irq(4))
    pc.interrupts.watch(uart.poll)
    uart.write_port(4, 1, 0x08)
    uart.write_port(1, 1, 0x01)
    assert not pc.interrupts.pending()
    uart.feed(b"x")
    assert pc.interrupts.pending()
    assert pc.interrupts.acknowledge() == 0x24
