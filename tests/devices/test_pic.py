"""8259 pair: initialisation, priorities, every kind of EOI, edges and levels, the cascade, spurious interrupts."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from casemate.devices.pic import I8259, PicPair

MASTER_BASE, SLAVE_BASE = 0x20, 0x28
EOI = 0x20


def initialise(chip: I8259, base: int, icw4: int = 0x01) -> None:
    chip.write_port(0, 1, 0x11)
    for value in (base, 0x04, icw4):
        chip.write_port(1, 1, value)


def pair(icw4: int = 0x01) -> PicPair:
    pic = PicPair()
    initialise(pic.master, MASTER_BASE, icw4)
    initialise(pic.slave, SLAVE_BASE, icw4)
    return pic


def pulse(pic: PicPair, irq: int) -> None:
    pic.set_irq(irq, True)
    pic.set_irq(irq, False)


def end(pic: PicPair, irq: int) -> None:
    if irq >= 8:
        pic.slave.write_port(0, 1, EOI)
    pic.master.write_port(0, 1, EOI)


@pytest.mark.parametrize("irq", [irq for irq in range(16) if irq != 2])
def test_pic_delivers_the_vector_of_each_input(irq: int) -> None:
    pic = pair()
    assert not pic.pending()
    pulse(pic, irq)
    assert pic.pending()
    assert pic.acknowledge() == MASTER_BASE + irq
    assert not pic.pending()
    pulse(pic, irq)
    assert not pic.pending(), "in service blocks itself"
    end(pic, irq)
    assert pic.acknowledge() == MASTER_BASE + irq


def test_pic_serves_by_priority_with_the_slave_at_input_2() -> None:
    pic = pair()
    for irq in (7, 3, 15, 8, 1, 0):
        pulse(pic, irq)
    order = []
    while pic.pending():
        order.append(pic.acknowledge() - MASTER_BASE)
        end(pic, order[-1])
    assert order == [0, 1, 8, 15, 3, 7]


def test_pic_higher_priority_interrupts_a_lower_one_in_service() -> None:
    pic = pair()
    pulse(pic, 4)
    assert pic.acknowledge() == MASTER_BASE + 4
    pulse(pic, 5)
    assert not pic.pending()
    pulse(pic, 1)
    assert pic.acknowledge() == MASTER_BASE + 1
    end(pic, 1)
    assert not pic.pending()
    end(pic, 4)
    assert pic.acknowledge() == MASTER_BASE + 5


def test_pic_mask_holds_requests_back_and_reads_back() -> None:
    pic = pair()
    pic.master.write_port(1, 1, 0xFF)
    assert pic.master.read_port(1, 1) == 0xFF
    pulse(pic, 4)
    assert not pic.pending()
    assert not pic.enabled(4)
    pic.master.write_port(1, 1, 0xEF)
    assert pic.enabled(4)
    assert pic.acknowledge() == MASTER_BASE + 4


def test_pic_slave_input_needs_the_cascade_unmasked() -> None:
    pic = pair()
    pic.master.write_port(1, 1, 0x04)
    assert not pic.enabled(12)
    pulse(pic, 12)
    assert not pic.pending()
    pic.master.write_port(1, 1, 0x00)
    assert pic.enabled(12)
    assert pic.acknowledge() == SLAVE_BASE + 4


def test_pic_edge_counts_once_while_the_line_stays_up() -> None:
    pic = pair()
    pic.set_irq(3, True)
    assert pic.acknowledge() == MASTER_BASE + 3
    end(pic, 3)
    pic.set_irq(3, True)
    assert not pic.pending()
    pic.set_irq(3, False)
    pic.set_irq(3, True)
    assert pic.pending()


def test_pic_level_repeats_until_the_line_falls() -> None:
    pic = pair()
    assert pic.elcr.write_port(1, 1, 0xFF)
    assert pic.elcr.read_port(1, 1) == 0xDE
    pic.set_irq(11, True)
    for _ in range(3):
        assert pic.acknowledge() == SLAVE_BASE + 3
        assert not pic.pending()
        end(pic, 11)
        assert pic.pending()
    pic.set_irq(11, False)
    assert pic.slave.highest() is None


def test_pic_elcr_keeps_the_timer_keyboard_and_cascade_edge_triggered() -> None:
    pic = pair()
    pic.elcr.write_port(0, 1, 0xFF)
    assert pic.elcr.read_port(0, 1) == 0xF8


def test_pic_spurious_interrupt_is_7_and_not_in_service() -> None:
    pic = pair()
    pic.elcr.write_port(0, 1, 0x20)
    pic.set_irq(5, True)
    assert pic.pending()
    pic.set_irq(5, False)
    assert pic.acknowledge() == MASTER_BASE + 7
    pic.master.write_port(0, 1, 0x0B)
    assert pic.master.read_port(0, 1) == 0


def test_pic_reads_requests_or_in_service_as_ocw3_says() -> None:
    pic = pair()
    pulse(pic, 1)
    pic.acknowledge()
    pulse(pic, 6)
    assert pic.master.read_port(0, 1) == 0x40
    pic.master.write_port(0, 1, 0x0B)
    assert pic.master.read_port(0, 1) == 0x02
    pic.master.write_port(0, 1, 0x0A)
    assert pic.master.read_port(0, 1) == 0x40


def test_pic_poll_acknowledges() -> None:
    pic = pair()
    pulse(pic, 6)
    pic.master.write_port(0, 1, 0x0C)
    assert pic.master.read_port(0, 1) == 0x86
    assert not pic.pending()
    pic.master.write_port(0, 1, 0x0C)
    assert pic.master.read_port(0, 1) == 0


def test_pic_specific_eoi_ends_the_one_it_names() -> None:
    pic = pair()
    for irq in (5, 1):
        pulse(pic, irq)
        pic.acknowledge()
    pic.master.write_port(0, 1, 0x65)
    pic.master.write_port(0, 1, 0x0B)
    assert pic.master.read_port(0, 1) == 0x02


@pytest.mark.parametrize("eoi", [0xA0, 0xE4])
def test_pic_rotating_eoi_makes_the_served_input_last(eoi: int) -> None:
    pic = pair()
    pulse(pic, 4)
    pic.acknowledge()
    pic.master.write_port(0, 1, eoi)
    for irq in (0, 4, 5):
        pulse(pic, irq)
    order = []
    while pic.pending():
        order.append(pic.acknowledge() - MASTER_BASE)
        pic.master.write_port(0, 1, EOI)
    assert order == [5, 0, 4]


def test_pic_set_priority_rotates_without_eoi() -> None:
    pic = pair()
    pic.master.write_port(0, 1, 0xC5)
    pulse(pic, 0)
    pulse(pic, 6)
    assert pic.acknowledge() == MASTER_BASE + 6


def test_pic_auto_eoi_leaves_nothing_in_service_and_may_rotate() -> None:
    pic = pair(icw4=0x03)
    pulse(pic, 1)
    pic.acknowledge()
    pic.master.write_port(0, 1, 0x0B)
    assert pic.master.read_port(0, 1) == 0
    pic.master.write_port(0, 1, 0x80)
    pulse(pic, 4)
    pic.acknowledge()
    pulse(pic, 4)
    pulse(pic, 5)
    assert pic.acknowledge() == MASTER_BASE + 5


def test_pic_special_mask_lets_lower_priorities_through() -> None:
    pic = pair()
    pulse(pic, 1)
    pic.acknowledge()
    pulse(pic, 6)
    assert not pic.pending()
    pic.master.write_port(0, 1, 0x68)
    assert not pic.pending()
    pic.master.write_port(1, 1, 0x02)
    assert pic.acknowledge() == MASTER_BASE + 6


def test_pic_initialisation_clears_mask_and_requests() -> None:
    pic = pair()
    pic.master.write_port(1, 1, 0xFF)
    pulse(pic, 4)
    initialise(pic.master, 0x50)
    assert pic.master.read_port(1, 1) == 0
    assert not pic.pending()
    pulse(pic, 4)
    assert pic.acknowledge() == 0x54


def test_pic_initialisation_without_icw4_takes_three_words() -> None:
    pic = PicPair()
    pic.master.write_port(0, 1, 0x10)
    for value in (0x40, 0x04, 0xF7):
        pic.master.write_port(1, 1, value)
    assert pic.master.read_port(1, 1) == 0xF7
    pulse(pic, 3)
    assert pic.acknowledge() == 0x43


def test_pic_line_that_is_up_interrupts_when_it_becomes_level_triggered() -> None:
    pic = pair()
    pic.set_irq(5, True)
    pic.acknowledge()
    end(pic, 5)
    assert not pic.pending()
    pic.elcr.write_port(0, 1, 0x20)
    assert pic.pending()


def test_pic_initialisation_keeps_a_level_that_is_up() -> None:
    pic = pair()
    pic.elcr.write_port(0, 1, 0x20)
    pic.set_irq(5, True)
    initialise(pic.master, MASTER_BASE)
    assert pic.acknowledge() == MASTER_BASE + 5


def test_pic_ocw3_without_selection_changes_nothing() -> None:
    pic = pair()
    pulse(pic, 1)
    pic.acknowledge()
    pic.master.write_port(0, 1, 0x0B)
    pic.master.write_port(0, 1, 0x08)
    assert pic.master.read_port(0, 1) == 0x02


def test_pic_refuses_wide_accesses() -> None:
    pic = pair()
    for device in (pic.master, pic.slave, pic.elcr):
        assert device.read_port(0, 2) is None
        assert not device.write_port(1, 2, 0xFFFF)
    assert pic.master.read_port(1, 1) == 0


def test_pic_reset_forgets_everything() -> None:
    pic = pair()
    pic.elcr.write_port(0, 1, 0x20)
    pic.set_irq(5, True)
    pic.set_irq(12, True)
    pic.reset()
    assert not pic.pending()
    assert pic.elcr.read_port(0, 1) == 0


@pytest.mark.parametrize(
    ("icw4", "nests"), [(0x01, False), (0x11, True)], ids=["normal", "special-fully-nested"]
)
def test_pic_slave_interrupts_itself_in_special_fully_nested_mode_only(icw4: int, nests: bool) -> None:
    pic = PicPair()
    initialise(pic.master, MASTER_BASE, icw4)
    initialise(pic.slave, SLAVE_BASE)
    pulse(pic, 12)
    assert pic.acknowledge() == SLAVE_BASE + 4
    pulse(pic, 14)
    assert not pic.pending(), "below what is in service"
    pulse(pic, 9)
    assert pic.pending() is nests
    if nests:
        assert pic.acknowledge() == SLAVE_BASE + 1


def test_pic_in_auto_eoi_mode_has_nothing_in_service() -> None:
    pic = pair(icw4=0x03)
    pulse(pic, 3)
    pulse(pic, 5)
    assert [pic.acknowledge(), pic.acknowledge()] == [MASTER_BASE + 3, MASTER_BASE + 5]
    pic.master.write_port(0, 1, 0x0B)
    assert pic.master.read_port(0, 1) == 0


def test_pic_looks_for_what_is_due_before_it_shows_its_requests() -> None:
    pic = pair()
    pic.master.refresh = lambda: pulse(pic, 0)
    assert pic.master.read_port(0, 1) == 1


class PicMachine(RuleBasedStateMachine):
    """Against a plain model of edge-triggered, fully nested mode, kept as lists of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.pic = pair()
        self.requests: set[int] = set()
        self.service: list[int] = []
        self.masked: set[int] = set()

    @staticmethod
    def rank(irq: int) -> tuple[int, int]:
        """The slave's inputs stand where the cascade is."""
        return (2 if irq >= 8 else irq), irq

    def best(self) -> int | None:
        """What should come next: above the master's input of everything in service."""
        limit = min((self.rank(irq)[0] for irq in self.service), default=8)
        ready = [irq for irq in self.requests - self.masked if self.rank(irq)[0] < limit]
        return min(ready, key=self.rank, default=None)

    @rule(irq=st.sampled_from([0, 1, 3, 4, 5, 6, 7, 8, 9, 12, 15]))
    def request(self, irq: int) -> None:
        pulse(self.pic, irq)
        self.requests.add(irq)

    @precondition(lambda self: self.best() is not None)
    @rule()
    def acknowledge(self) -> None:
        irq = self.best()
        assert irq is not None
        assert self.pic.acknowledge() == MASTER_BASE + irq
        self.requests.discard(irq)
        self.service.append(irq)

    @precondition(lambda self: self.service)
    @rule()
    def finish(self) -> None:
        end(self.pic, self.service.pop())

    @rule(masked=st.sets(st.sampled_from([0, 1, 3, 4, 5, 6, 7])))
    def mask(self, masked: set[int]) -> None:
        self.pic.master.write_port(1, 1, sum(1 << irq for irq in masked))
        self.masked = masked

    @invariant()
    def pending_agrees(self) -> None:
        assert self.pic.pending() == (self.best() is not None)


TestPicMachine = PicMachine.TestCase
