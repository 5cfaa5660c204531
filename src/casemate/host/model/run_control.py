"""Who says that a modelled vCPU must leave KVM_RUN, and how it waits in HLT (Linux api.rst, KVM_RUN)."""

from __future__ import annotations

import threading
from typing import Protocol

from casemate.host.clock import NANOSECONDS

_MOST_SECONDS = 0.1


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

    def defers_interrupts(self) -> bool:
        """Whether the guest stands in an access that is being undone: an interrupt comes behind it."""

    def others_wait(self) -> bool:
        """Whether another vCPU, of another thread, waits until this one is not executing."""

    def pass_turn(self) -> None:
        """Let those execute first."""

    def wait(self, nanoseconds: int | None) -> None:
        """Wait in HLT at most that long, or until woken; None is for good. It may return early."""

    def wake(self) -> None:
        """End a wait."""


class ThreadControl:
    """By a flag and a condition, for a run loop that has its own thread."""

    def __init__(self) -> None:
        self._requested = False
        self._awake = threading.Condition()
        self._was_woken = False

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

    def defers_interrupts(self) -> bool:
        """No access is undone."""
        return False

    def others_wait(self) -> bool:
        """Those of a group share this one, and their thread."""
        return False

    def pass_turn(self) -> None:
        """To nobody."""

    def wait(self, nanoseconds: int | None) -> None:
        """Not at all if it was woken since it last waited."""
        with self._awake:
            if not self._was_woken:
                self._awake.wait(
                    _MOST_SECONDS if nanoseconds is None else min(nanoseconds / NANOSECONDS, _MOST_SECONDS)
                )
            self._was_woken = False

    def wake(self) -> None:
        """Notify."""
        with self._awake:
            self._was_woken = True
            self._awake.notify()
