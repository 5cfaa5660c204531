"""Where vCPUs stand while the guest must not run: paused, being reset, or halted for good (docs/design/machine.md)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.machine.machine import Machine


class Standstill:
    """Nothing here is on the way of a vCPU that runs: who wants a standstill stops the vCPUs, and each comes here."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        # Over a reentrant lock, for a signal handler ends the run from whatever its thread is doing.
        self._changed = threading.Condition()
        self._standing = 0
        self.is_paused = False
        """Set before the run, its vCPUs stand before their first instruction."""

    def stand(self, *, halted: bool = False) -> None:
        """Stay as long as the guest must not run, a ``halted`` vCPU until the next reset; on the vCPU's thread.

        The last one to come makes the reset that was asked for.
        """
        machine = self._machine
        with self._changed:
            self._standing += 1
            self._changed.notify_all()
            resets = machine.resets
            while machine.ending is None:
                if machine.reset_wanted and self._standing == len(machine.vcpus):
                    machine.reset()
                    self._changed.notify_all()
                elif self.is_paused or machine.reset_wanted or (halted and machine.resets == resets):
                    self._changed.wait()
                else:
                    break
            self._standing -= 1

    def pause(self) -> None:
        """Returns when all vCPUs stand still, or the run has ended. From a thread that runs none."""
        machine = self._machine
        self.is_paused = True
        machine.stop_vcpus()  # without the lock, for whom a signal interrupts in there waits for it
        with self._changed:
            self._changed.wait_for(lambda: self._standing == len(machine.vcpus) or machine.ending is not None)

    def resume(self) -> None:
        """Let the vCPUs go on. From any thread."""
        with self._changed:
            self.is_paused = False
            self._changed.notify_all()

    def wake(self) -> None:
        """The run has ended, or a reset is wanted. From any thread, or a signal handler."""
        with self._changed:
            self._changed.notify_all()
