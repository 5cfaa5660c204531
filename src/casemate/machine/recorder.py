"""Keeps what devices and memory report while a guest runs, in bounded memory (docs/design/events.md)."""

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from casemate.events import AccessPath, Event, EventSink, FlashCommand, Milestone, ProtectionChange, Violation

if TYPE_CHECKING:
    from casemate.evidence.flash_log import FlashLog

_KEPT = 1000
_PROBES = (0x50, 0x70)
"""Flash commands that change nothing (clear status, read status), which firmware sends to learn whether it is in flash
(edk2 OvmfPkg/QemuFlashFvbServicesRuntimeDxe, QemuFlashDetected)."""


class TimedViolation(NamedTuple):
    """A violation and when it happened, in seconds of host time since the machine was built."""

    at: float
    event: Violation


class TimedChange(NamedTuple):
    """A change of protection and when it happened, in seconds of host time since the machine was built."""

    at: float
    event: ProtectionChange


class Recorder(EventSink):
    """The machine's event sink. Lists keep the first thousand events of a kind; the counts go on."""

    def __init__(self) -> None:
        self.violations: list[TimedViolation] = []
        self.violation_count = 0
        self.counts_probes = False
        """Whether such a command at read-only memory is counted as a probe, and not as a violation."""
        self.probes = 0
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

    def watch_flash(self, unit: int, log: "FlashLog") -> None:
        """Expect commands of a flash unit, and keep them in its log."""
        self.flash[unit] = log

    def report(self, event: Event) -> None:
        """Take note of one event."""
        if type(event) is FlashCommand:  # nearly all of them
            self.flash[event.unit].add(event, monotonic() - self._started - event.ago)
        elif isinstance(event, Milestone):
            self._phase(event.phase)
        elif isinstance(event, Violation):
            if self.counts_probes and _is_probe(event):
                self.probes += 1
                return
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


def _is_probe(event: Violation) -> bool:
    is_rom = event.unit is None and event.path is AccessPath.READONLY_SLOT
    return is_rom and event.size == 1 and event.value in _PROBES
