"""The thread beside a modelled CPU: when it kicks the CPU, and when it has Python look (docs/design/model.md)."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator

import pytest

from casemate.host.clock import GuestClock
from casemate.host.model.cpu.records import CpuRecord
from casemate.host.model.ticker import Ticker

_STATE_BYTES = 0x10000
"""More than the engine's CPU state has; a kick is written there, too."""
_MILLISECOND = 1_000_000
_FAR = 3600.0


class Rig:
    """A ticker with a record that stands for a CPU. Each of its ``looks`` asks for ``seconds`` until the next."""

    def __init__(self, *, has_cpu: bool, seconds: float = _FAR) -> None:
        self.clock = GuestClock()
        self.looks = 0
        self.looked = threading.Condition()
        self._seconds = seconds
        self._state = ctypes.create_string_buffer(_STATE_BYTES)
        self.record = CpuRecord()
        self.record.cpu = ctypes.addressof(self._state)
        self.ticker = Ticker(self.clock, self._look, ctypes.addressof(self.record) if has_cpu else 0)
        self.ticker.start()

    def _look(self) -> float:
        with self.looked:
            self.looks += 1
            self.looked.notify_all()
        return self._seconds

    def begin(self) -> None:
        """The guest executes; returns when the ticker has looked once."""
        self.ticker.executing.set()
        self.wait_for_looks(1)

    def wait_for_looks(self, count: int) -> None:
        with self.looked:
            self.looked.wait_for(lambda: self.looks >= count)

    def wait_for_kick(self) -> int:
        """Guest time when it had come; the record is as before."""
        turn = threading.Event()
        while not self.record.kicked:
            turn.wait(0.0005)
        self.record.kicked = 0
        return self.clock.now()


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**how: float) -> Rig:
        made.append(Rig(has_cpu=bool(how.pop("has_cpu", True)), **how))
        return made[-1]

    yield make
    for rig in made:
        rig.ticker.close()


def test_cpu_is_kicked_when_something_is_due_and_python_is_not_asked(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.begin()
    for _ in range(3):
        due = rig.clock.now() + 5 * _MILLISECOND
        rig.ticker.set_due(due)
        assert rig.wait_for_kick() >= due
    assert rig.looks == 1


def test_earlier_time_is_kept_of_those_that_are_added(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.begin()
    soon = rig.clock.now() + 10 * _MILLISECOND
    rig.ticker.add_due(rig.clock.now() + 3600 * 1000 * _MILLISECOND)
    rig.ticker.add_due(soon)
    rig.ticker.add_due(soon + 3600 * 1000 * _MILLISECOND)
    assert rig.wait_for_kick() >= soon


def test_time_that_is_set_replaces_the_one_before(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.begin()
    rig.ticker.set_due(rig.clock.now() + 3600 * 1000 * _MILLISECOND)
    due = rig.clock.now() + 5 * _MILLISECOND
    rig.ticker.set_due(due)
    assert rig.wait_for_kick() >= due
    rig.ticker.set_due(None)
    assert not rig.record.kicked


def test_what_was_due_already_is_a_kick_at_once(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.begin()
    rig.ticker.set_due(1)
    rig.wait_for_kick()


def test_what_is_due_comes_sooner_when_guest_time_is_skipped(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.begin()
    rig.ticker.set_due(rig.clock.now() + 3600 * 1000 * _MILLISECOND)
    for _ in range(3600):
        rig.clock.skip(1000 * _MILLISECOND)
        rig.ticker.time_skipped(1000 * _MILLISECOND)
    rig.wait_for_kick()


def test_python_looks_again_after_the_time_that_it_said(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(seconds=0.001)
    rig.begin()
    rig.wait_for_looks(5)


def test_without_a_cpu_python_looks_when_something_is_due(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(has_cpu=False)
    rig.begin()
    rig.ticker.add_due(rig.clock.now() + 5 * _MILLISECOND)
    rig.wait_for_looks(2)
    assert not rig.record.kicked


def test_nobody_looks_while_the_guest_does_not_execute(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(seconds=0.001)
    rig.ticker.set_due(1)
    rig.ticker.close()
    assert rig.looks <= 1
