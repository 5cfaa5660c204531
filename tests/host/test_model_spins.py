"""A guest that waits by PAUSE does not take the host's time (docs/decisions/0004-guest-clock.md)."""

from __future__ import annotations

import pytest
from support.guest_rig import Rig

from casemate.abi.guest_kind import GuestKind
from casemate.host.clock import NANOSECONDS, GuestClock
from casemate.host.exits import Hlt
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.model.vcpu import ModelVcpu

PAUSES = 16_000
STARTED, ENDED = 0x2000, 0x2008
CODE = f"""
            rdtsc
            mov [{STARTED}], eax
            mov [{STARTED + 4}], edx
            mov ecx, {PAUSES}
    spin:   pause
            dec ecx
            jne spin
            rdtsc
            mov [{ENDED}], eax
            mov [{ENDED + 4}], edx
            hlt
"""


class CountingClock(GuestClock):
    """Knows how far it was moved forward."""

    skipped = 0

    def skip(self, nanoseconds: int) -> None:
        self.skipped += nanoseconds
        super().skip(nanoseconds)


def spin(allowance: int) -> tuple[int, int]:
    """Nanoseconds that were skipped, and ticks of the guest's counter that passed, with so much that may be skipped."""
    clock = CountingClock(allowance)
    with Rig(CODE, 32, ModelHypervisor(clock).create_vm(GuestKind.PLAIN)) as rig:
        assert rig.run() == Hlt(interrupts_enabled=False)
        started, ended = (int.from_bytes(rig.ram_at(at, 8), "little") for at in (STARTED, ENDED))
        return clock.skipped, ended - started


def test_sixteen_pauses_move_the_guests_clocks_on() -> None:
    skipped, ticks = spin(10 * NANOSECONDS)
    assert 0.5 < skipped / (PAUSES // 16 * 50_000) <= 1
    assert ticks > skipped / 2, "the time-stamp counter, of at least 500 MHz, stayed behind"


def test_a_spin_skips_no_more_than_idling_may() -> None:
    skipped, _ = spin(NANOSECONDS // 100)
    assert NANOSECONDS // 100 - 50_000 <= skipped <= NANOSECONDS // 100


def test_where_a_second_is_a_second_a_spin_takes_as_long_as_it_takes() -> None:
    assert spin(0)[0] == 0


TICKS = 1 << 28
"""Of the time-stamp counter: 50 to 300 ms."""


def rests(between: str) -> int:
    """How often the CPU slept while a guest counted ``TICKS`` by PAUSE, and did something else ``between``."""
    code = f"""
                rdtsc
                mov ebx, eax
        spin:   pause
                {between}
                rdtsc
                sub eax, ebx
                cmp eax, {TICKS}
                jb spin
                hlt
    """
    with Rig(code, 32, ModelHypervisor(GuestClock()).create_vm(GuestKind.PLAIN)) as rig:
        assert rig.run() == Hlt(interrupts_enabled=False)
        assert isinstance(rig.vcpu, ModelVcpu)
        return int(rig.vcpu.engine.hooks.record.rests)


@pytest.mark.parametrize("between", ["", "in al, 0x80"])
def test_guest_that_counts_down_for_long_gives_the_processor_back(between: str) -> None:
    assert rests(between) > 0


@pytest.mark.parametrize(
    "between", ["in al, 0x80\nin al, 0x84", "in al, 0x80\nout 0x84, al", "mov [0xD0000000], al"]
)
def test_guest_that_looks_at_a_device_in_between_is_not_made_to_wait(between: str) -> None:
    assert rests(between) == 0
