"""Local APIC: registers, priorities, IPIs, errors, and its timer on a clock that jumps."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.devices.lapic import SUPPRESSES_EOI, Lapic, LapicRecord, Register, record_size
from casemate.testing.manual_clock import ManualClock

ENABLED = 0x1FF
MASKED, PERIODIC = 0x10000, 0x20000
DIVIDERS = {0x0: 2, 0x1: 4, 0x2: 8, 0x3: 16, 0x8: 32, 0x9: 64, 0xA: 128, 0xB: 1}


class Apic:
    """An enabled local APIC with its clock."""

    def __init__(self, svr: int = ENABLED) -> None:
        self.clock = ManualClock()
        self.lapic = Lapic(self.clock)
        self.write(Register.SVR, svr)

    def read(self, register: int) -> int:
        value = self.lapic.read_mmio(register, 4)
        assert value is not None
        return value

    def write(self, register: int, value: int) -> None:
        assert self.lapic.write_mmio(register, 4, value)

    def run_to(self, time: int) -> None:
        self.clock.time = time
        self.lapic.advance(time)

    def start_timer(self, count: int, lvt: int = 0x40, divide: int = 0xB) -> None:
        self.write(Register.TIMER_DIVIDE, divide)
        self.write(Register.LVT_TIMER, lvt)
        self.write(Register.TIMER_INITIAL, count)

    def take(self) -> int:
        assert self.lapic.pending()
        return self.lapic.acknowledge()

    def bits(self, register: int) -> set[int]:
        words = [self.read(register + 16 * index) for index in range(8)]
        return {32 * word + bit for word, value in enumerate(words) for bit in range(32) if value >> bit & 1}


def test_lapic_power_on_state() -> None:
    lapic = Lapic(ManualClock())
    expected = {
        Register.ID: 0,
        Register.VERSION: 0x1050014,
        Register.SVR: 0xFF,
        Register.DFR: 0xFFFF_FFFF,
        Register.LVT_TIMER: MASKED,
        Register.LVT_LINT0: 0x700,
        Register.LVT_LINT1: MASKED,
        Register.TIMER_CURRENT: 0,
    }
    assert {register: lapic.read_mmio(register, 4) for register in expected} == expected
    assert not lapic.enabled
    assert lapic.accepts_ext_int()
    assert lapic.timer_deadline() is None


def test_lapic_registers_lie_where_the_sdm_has_them() -> None:
    expected = {
        0x020: "ID",
        0x030: "VERSION",
        0x080: "TPR",
        0x0A0: "PPR",
        0x0B0: "EOI",
        0x0D0: "LDR",
        0x0E0: "DFR",
        0x0F0: "SVR",
        0x100: "ISR",
        0x180: "TMR",
        0x200: "IRR",
        0x280: "ESR",
        0x300: "ICR_LOW",
        0x310: "ICR_HIGH",
        0x320: "LVT_TIMER",
        0x350: "LVT_LINT0",
        0x360: "LVT_LINT1",
        0x370: "LVT_ERROR",
        0x380: "TIMER_INITIAL",
        0x390: "TIMER_CURRENT",
        0x3E0: "TIMER_DIVIDE",
    }
    assert {offset: getattr(Register, name) for offset, name in expected.items()} == {o: o for o in expected}


def test_lapic_reads_bytes_of_a_register_and_zero_between_registers() -> None:
    apic = Apic()
    assert [apic.lapic.read_mmio(Register.VERSION + byte, 1) for byte in range(4)] == [0x14, 0x00, 0x05, 0x01]
    assert apic.lapic.read_mmio(Register.VERSION, 2) == 0x0014
    assert apic.lapic.read_mmio(Register.VERSION + 4, 4) == 0
    assert not apic.lapic.write_mmio(Register.TPR, 1, 0xFF)
    assert not apic.lapic.write_mmio(Register.TPR + 4, 4, 0xFF)
    assert apic.read(Register.TPR) == 0


@given(vectors=st.sets(st.integers(16, 255), max_size=30))
def test_lapic_serves_classes_from_the_top_down(vectors: set[int]) -> None:
    apic = Apic()
    for vector in vectors:
        assert apic.lapic.accept(vector, level=False)
    assert apic.bits(Register.IRR) == vectors
    order = []
    while apic.lapic.pending():
        order.append(apic.lapic.acknowledge())
        assert apic.bits(Register.ISR) == {order[-1]}
        apic.write(Register.EOI, 0)
    assert order == sorted(vectors, reverse=True)


def test_lapic_same_class_waits_and_higher_class_interrupts() -> None:
    apic = Apic()
    apic.lapic.accept(0x45, level=False)
    assert apic.take() == 0x45
    apic.lapic.accept(0x4F, level=False)
    assert not apic.lapic.pending()
    apic.lapic.accept(0x50, level=False)
    assert apic.take() == 0x50
    assert apic.read(Register.PPR) == 0x50
    apic.write(Register.EOI, 0)
    assert apic.read(Register.PPR) == 0x40
    apic.write(Register.EOI, 0)
    assert apic.take() == 0x4F


def test_lapic_task_priority_holds_back_its_class_and_below() -> None:
    apic = Apic()
    apic.lapic.accept(0x4F, level=False)
    apic.write(Register.TPR, 0x40)
    assert not apic.lapic.pending()
    assert apic.read(Register.PPR) == 0x40
    assert apic.lapic.acknowledge() == 0xFF, "the spurious vector"
    assert apic.bits(Register.ISR) == set()
    apic.write(Register.TPR, 0x3F)
    assert apic.take() == 0x4F


def test_lapic_disabled_takes_and_gives_nothing_and_masks_its_entries() -> None:
    apic = Apic(svr=0xFF)
    assert not apic.lapic.accept(0x40, level=False)
    apic.start_timer(1000, lvt=0x40)
    assert apic.read(Register.LVT_TIMER) == MASKED | 0x40
    apic.write(Register.LVT_LINT0, 0x700)
    assert apic.read(Register.LVT_LINT0) == MASKED | 0x700
    apic.run_to(10_000)
    assert not apic.lapic.pending()


def test_lapic_disabling_masks_all_entries() -> None:
    apic = Apic()
    apic.write(Register.LVT_LINT0, 0x700)
    apic.write(Register.SVR, 0xFF)
    assert apic.read(Register.LVT_LINT0) == MASKED | 0x700


@pytest.mark.parametrize(
    ("svr", "lint0", "accepts"),
    [(ENABLED, 0x700, True), (ENABLED, MASKED | 0x700, False), (ENABLED, 0x400, False), (0xFF, 0x0, True)],
)
def test_lapic_lint0_decides_about_the_8259(svr: int, lint0: int, accepts: bool) -> None:
    apic = Apic(svr)
    apic.write(Register.LVT_LINT0, lint0)
    assert apic.lapic.accepts_ext_int() is accepts


def test_lapic_tells_the_end_of_level_triggered_interrupts_only() -> None:
    apic = Apic()
    ended: list[int] = []
    apic.lapic.on_eoi = ended.append
    apic.lapic.accept(0x50, level=True)
    apic.lapic.accept(0x60, level=False)
    assert apic.bits(Register.TMR) == {0x50}
    apic.take()
    apic.write(Register.EOI, 0)
    assert not ended
    apic.take()
    apic.write(Register.EOI, 0)
    assert ended == [0x50]
    apic.write(Register.EOI, 0)
    assert ended == [0x50]


@pytest.mark.parametrize(
    ("high", "low", "arrives"),
    [
        (0x00, 0x0004_0045, True),  # self
        (0x00, 0x0008_0045, True),  # all including self
        (0x00, 0x000C_0045, False),  # all but self
        (0x03, 0x0000_0045, True),  # physical, to this ID
        (0x04, 0x0000_0045, False),  # physical, to another
        (0xFF, 0x0000_0045, True),  # physical broadcast
        (0x02, 0x0000_0845, True),  # logical, flat
        (0x01, 0x0000_0845, False),
        (0x03, 0x0000_0145, True),  # lowest priority
        (0x03, 0x0000_0445, False),  # NMI
        (0x03, 0x0000_4545, False),  # INIT
        (0x03, 0x0000_4645, False),  # start-up
    ],
)
def test_lapic_ipi_reaches_this_cpu_when_addressed(high: int, low: int, arrives: bool) -> None:
    apic = Apic()
    apic.write(Register.ID, 0x03 << 24)
    apic.write(Register.LDR, 0x02 << 24)
    apic.write(Register.ICR_HIGH, high << 24)
    apic.write(Register.ICR_LOW, low)
    assert apic.bits(Register.IRR) == ({0x45} if arrives else set())
    assert not apic.read(Register.ICR_LOW) & 0x1000, "delivery status is idle"


@pytest.mark.parametrize(
    ("destination", "hit"), [(0x21, True), (0x22, False), (0x31, False), (0xF1, True), (0xF2, False)]
)
def test_lapic_cluster_mode_matches_cluster_and_member(destination: int, hit: bool) -> None:
    apic = Apic()
    apic.write(Register.DFR, 0x0FFF_FFFF)
    apic.write(Register.LDR, 0x21 << 24)
    assert apic.lapic.is_destination(destination, logical=True) is hit


def test_lapic_errors_are_collected_and_shown_after_a_write() -> None:
    apic = Apic()
    apic.write(Register.LVT_ERROR, 0xFE)
    apic.write(Register.ICR_LOW, 0x0004_0003)
    assert apic.take() == 0xFE
    assert apic.read(Register.ESR) == 0
    apic.write(Register.ESR, 0)
    assert apic.read(Register.ESR) == 0x20
    apic.write(Register.ESR, 0)
    assert apic.read(Register.ESR) == 0


@pytest.mark.parametrize(("vector", "legal"), [(15, False), (16, True)])
def test_lapic_vectors_start_at_16(vector: int, legal: bool) -> None:
    apic = Apic()
    assert apic.lapic.accept(vector, level=False) is legal
    apic.write(Register.ICR_LOW, 0x0004_0000 | vector)
    assert apic.bits(Register.IRR) == ({16} if legal else set())
    apic.write(Register.ESR, 0)
    assert apic.read(Register.ESR) == (0 if legal else 0x60)


def test_lapic_error_interrupt_with_illegal_vector_does_not_recurse() -> None:
    apic = Apic()
    apic.write(Register.LVT_ERROR, 0x05)
    apic.write(Register.ICR_LOW, 0x0004_0003)
    apic.write(Register.ESR, 0)
    assert apic.read(Register.ESR) == 0x60
    assert not apic.lapic.pending()


@pytest.mark.parametrize(("code", "divider"), DIVIDERS.items())
def test_timer_one_shot_counts_down_at_1_ghz_over_the_divider(code: int, divider: int) -> None:
    apic = Apic()
    apic.start_timer(1000, divide=code)
    assert apic.lapic.timer_deadline() == 1000 * divider
    apic.run_to(250 * divider)
    assert apic.read(Register.TIMER_CURRENT) == 750
    apic.run_to(1000 * divider - 1)
    assert not apic.lapic.pending()
    apic.run_to(1000 * divider)
    assert apic.take() == 0x40
    assert apic.read(Register.TIMER_CURRENT) == 0
    assert apic.lapic.timer_deadline() is None
    apic.run_to(1 << 50)
    assert not apic.lapic.pending()


@given(period=st.integers(1, 100_000), jumps=st.lists(st.integers(0, 500_000), max_size=40))
def test_timer_periodic_coalesces_and_stays_in_phase(period: int, jumps: list[int]) -> None:
    apic = Apic()
    apic.start_timer(period, lvt=PERIODIC | 0x40)
    for jump in jumps:
        before = apic.clock.now()
        apic.run_to(before + jump)
        now = apic.clock.now()
        ticked = now // period > before // period
        assert apic.lapic.pending() == ticked
        assert apic.lapic.timer_deadline() == (now // period + 1) * period
        assert apic.read(Register.TIMER_CURRENT) == period - now % period
        if ticked:
            assert apic.lapic.acknowledge() == 0x40
            apic.write(Register.EOI, 0)
            assert not apic.lapic.pending(), "missed ticks are one"


def test_timer_expiring_while_masked_is_not_delivered_later() -> None:
    apic = Apic()
    apic.start_timer(1000, lvt=MASKED | 0x40)
    assert apic.lapic.timer_deadline() is None
    apic.clock.time = 2000
    apic.write(Register.LVT_TIMER, 0x40)
    apic.lapic.advance(2000)
    assert not apic.lapic.pending()


def test_timer_writing_zero_stops_it() -> None:
    apic = Apic()
    apic.start_timer(1000)
    apic.write(Register.TIMER_INITIAL, 0)
    apic.run_to(5000)
    assert not apic.lapic.pending()
    assert apic.lapic.timer_deadline() is None


def test_timer_divider_change_keeps_the_count() -> None:
    apic = Apic()
    apic.start_timer(1000, divide=0xB)
    apic.run_to(400)
    apic.write(Register.TIMER_DIVIDE, 0x0)
    assert apic.read(Register.TIMER_CURRENT) == 600
    assert apic.lapic.timer_deadline() == 400 + 600 * 2
    assert apic.read(Register.TIMER_DIVIDE) == 0x0


def test_timer_does_not_offer_tsc_deadline_mode() -> None:
    apic = Apic()
    apic.write(Register.LVT_TIMER, 0x4_0040)
    assert apic.read(Register.LVT_TIMER) == 0x40


def test_lapic_reset_forgets_requests_and_timer() -> None:
    apic = Apic()
    apic.start_timer(1000, lvt=PERIODIC | 0x40)
    apic.lapic.accept(0x50, level=True)
    apic.lapic.reset()
    apic.write(Register.SVR, ENABLED)
    apic.run_to(10_000)
    assert not apic.lapic.pending()


@given(
    accesses=st.lists(
        st.tuples(st.integers(0, 0xFFF), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 32) - 1)),
        max_size=60,
    )
)
def test_lapic_survives_any_accesses(accesses: list[tuple[int, int, int]]) -> None:
    apic = Apic()
    for offset, size, written in accesses:
        apic.lapic.write_mmio(offset, size, written)
        apic.clock.skip(written)
        apic.lapic.advance(apic.clock.now())
        value = apic.lapic.read_mmio(offset, size)
        assert value is not None
        assert 0 <= value < 1 << 8 * size
        if apic.lapic.pending():
            assert 16 <= apic.lapic.acknowledge() <= 255


NMI, INIT = 4, 5
NMI_EVENT, INIT_EVENT = 1, 2


def test_lapic_record_is_as_large_as_the_library_has_it() -> None:
    assert ctypes.sizeof(LapicRecord) == record_size()


@pytest.mark.parametrize("svr", [0xFF, ENABLED])
def test_lapic_takes_nmi_and_init_even_while_software_has_it_disabled(svr: int) -> None:
    apic = Apic(svr)
    assert apic.lapic.accept(0, level=False, mode=NMI)
    assert apic.lapic.record.events == NMI_EVENT
    assert apic.lapic.accept(0, level=False, mode=INIT)
    assert apic.lapic.has_event
    assert not apic.lapic.pending()


def test_lapic_init_resets_all_but_the_id() -> None:
    apic = Apic()
    apic.write(Register.ID, 3 << 24)
    apic.write(Register.TPR, 0x20)
    apic.lapic.accept(0x40, level=False)
    apic.start_timer(1000)
    assert not apic.lapic.take_init()
    apic.lapic.accept(0, level=False, mode=INIT)
    assert apic.lapic.take_init()
    assert not apic.lapic.take_init()
    assert [apic.read(register) for register in (Register.ID, Register.TPR, Register.SVR)] == [
        3 << 24,
        0,
        0xFF,
    ]
    assert apic.bits(Register.IRR) == set()
    assert apic.lapic.timer.deadline() is None


@pytest.mark.parametrize(
    ("entry", "requests", "events"),
    [
        (0x400, set(), NMI_EVENT),
        (0x045, {0x45}, 0),
        (0x500, set(), INIT_EVENT),
        (MASKED | 0x400, set(), 0),
    ],
    ids=["nmi", "fixed", "init", "masked"],
)
def test_lapic_lint1_is_what_its_entry_says(entry: int, requests: set[int], events: int) -> None:
    apic = Apic()
    apic.write(Register.LVT_LINT1, entry)
    apic.lapic.pulse_lint1()
    assert apic.bits(Register.IRR) == requests
    assert apic.lapic.record.events == events


@pytest.mark.parametrize(
    ("features", "version", "svr"), [(0, 0x50014, 0x1FF), (SUPPRESSES_EOI, 0x1050014, 0x11FF)]
)
def test_lapic_suppresses_eoi_broadcasts_where_it_says_that_it_can(
    features: int, version: int, svr: int
) -> None:
    ended: list[int] = []
    lapic = Lapic(ManualClock(), features)
    lapic.on_eoi = ended.append
    lapic.write_mmio(Register.SVR, 4, 0x11FF)
    assert lapic.read_mmio(Register.VERSION, 4) == version
    assert lapic.read_mmio(Register.SVR, 4) == svr
    lapic.accept(0x50, level=True)
    lapic.acknowledge()
    lapic.write_mmio(Register.EOI, 4, 0)
    assert ended == ([] if features else [0x50])


def test_lapic_registers_that_are_not_there_are_errors() -> None:
    apic = Apic()
    apic.write(Register.PPR, 0x10)
    apic.write(0x3F0, 0x45)
    apic.write(Register.ESR, 0)
    assert apic.read(Register.ESR) == 0x80
    assert apic.bits(Register.IRR) == set(), "self-IPI is x2APIC's"


@given(vectors=st.sets(st.integers(16, 255), max_size=12), served=st.integers(0, 3), tpr=st.integers(0, 255))
def test_lapic_state_survives_being_saved_and_loaded(vectors: set[int], served: int, tpr: int) -> None:
    apic, other = Apic(), Apic(svr=0xFF)
    for vector in vectors:
        apic.lapic.accept(vector, level=bool(vector & 1))
    for _ in range(served):
        apic.lapic.acknowledge()
    apic.write(Register.TPR, tpr)
    apic.start_timer(1000, lvt=PERIODIC | 0x40)
    apic.run_to(300)
    other.clock.time = 300
    other.lapic.load(apic.lapic.save())
    assert other.lapic.save() == apic.lapic.save()
    assert other.lapic.pending() == apic.lapic.pending()
    assert other.lapic.timer_deadline() == apic.lapic.timer_deadline()


def test_lapic_tells_when_its_timer_expires_next() -> None:
    apic = Apic()
    heard: list[int] = []
    apic.lapic.on_timer = heard.append
    apic.start_timer(1000)
    assert heard[-1] == 1000
