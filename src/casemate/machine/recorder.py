"""Keeps what devices and memory report while a guest runs, in bounded memory (docs/design/events.md)."""

from __future__ import annotations

from time import monotonic

from casemate.events import Event, EventSink, FlashCommand, Milestone, ProtectionChange, Violation
from casemate.records import TYPE_CHECKING, Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.evidence.flash_log import FlashLog

_KEPT = 1000


class TimedViolation(Value):
    """A violation and when it happened, in seconds of host time since the machine was built."""

    at: float
    event: Violation


class TimedChange(Value):
    """A change of protection and when it happened, in seconds of host time since the machine was built."""

    at: float
    event: ProtectionChange


class Recorder(EventSink):
    """The machine's event sink. Lists keep the first thousand events of a kind; the counts go on."""

    def __init__(self) -> None:
        self.violations: list[TimedViolation] = []
        self.violation_count = 0
        self.protection: list[TimedChange] = []
        self.protection_count = 0
        self.flash: dict[int, FlashLog] = {}
        """What was done to each flash unit."""
        self.phases: dict[str, float] = {}
        """Seconds at which each firmware phase was first seen, in that order."""
        self.examine: Callable[[Violation], Violation] | None = None
        """Adds to a violation what its reporter could not know; asked for those that are kept."""
        self.on_violation: Callable[[Violation], None] | None = None
        self.on_phase: Callable[[str], None] | None = None
        self._started = monotonic()

    def seconds(self) -> float:
        """Host time since the start."""
        return monotonic() - self._started

    def watch_flash(self, unit: int, contents: memoryview) -> None:
        """Expect commands of a flash unit."""
        from casemate.evidence.flash_log import FlashLog

        self.flash[unit] = FlashLog(contents)

    def report(self, event: Event) -> None:
        """Take note of one event."""
        if type(event) is FlashCommand:  # nearly all of them
            self.flash[event.unit].add(event, monotonic() - self._started - event.ago)
        elif isinstance(event, Milestone):
            self._phase(event.phase)
        elif isinstance(event, Violation):
            self.violation_count += 1
            if len(self.violations) < _KEPT:
                event = self.examine(event) if self.examine else event
                self.violations.append(TimedViolation(self.seconds(), event))
            if self.on_violation:
                self.on_violation(event)
        elif isinstance(event, ProtectionChange):
            self.protection_count += 1
            if len(self.protection) < _KEPT:
                self.protection.append(TimedChange(self.seconds(), event))

    def _phase(self, phase: str) -> None:
        if phase not in self.phases:
            self.phases[phase] = self.seconds()
            if self.on_phase:
                self.on_phase(phase)
