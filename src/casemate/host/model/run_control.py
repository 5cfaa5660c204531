"""Who says that a modelled vCPU must leave KVM_RUN, and how it waits in HLT (Linux api.rst, KVM_RUN)."""

from __future__ import annotations

import threading
from typing import Protocol

from casemate.host.clock import NANOSECONDS


class RunControl(Protocol):
    """One vCPU's. ``request_stop`` and ``wake`` may be called from any thread."""

    def stop_requested(self) -> bool:
        """Whether the run shall end."""

    def request_stop(self) -> None:
        """Ask for the end of the run that is, or of the next one."""

    def take_stop(self) -> None:
        """The run ends for the request, which is thereby served."""

    def take_stale(self) -> bool:
        """Whether code was written to from outside since this was last asked: nothing translated is to be executed."""

    def wait(self, nanoseconds: int | None) -> None:
        """Wait in HLT at most that long, or until woken; None is for good. It may return early."""

    def wake(self) -> None:
        """End a wait."""


class ThreadControl:
    """By a flag and a condition, for a run loop that has its own thread."""

    def __init__(self) -> None:
        self._requested = False
        self._awake = threading.Condition()

    def stop_requested(self) -> bool:
        """Whether somebody asked."""
        return self._requested

    def request_stop(self) -> None:
        """Set the flag, and wake."""
        self._requested = True
        self.wake()

    def take_stop(self) -> None:
        """Clear the flag."""
        self._requested = False

    def take_stale(self) -> bool:
        """Who writes says so to the VM (``memory_written``)."""
        return False

    def wait(self, nanoseconds: int | None) -> None:
        """At most a tenth of a second, for a wake-up may have come just before."""
        with self._awake:
            self._awake.wait(0.1 if nanoseconds is None else min(nanoseconds / NANOSECONDS, 0.1))

    def wake(self) -> None:
        """Notify."""
        with self._awake:
            self._awake.notify()
