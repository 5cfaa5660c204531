"""Ends guests that only burn time, as sealed ones do that fault on a read-only slot (Linux arch/x86/kvm/svm/sev.c)."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from casemate.machine.machine import Machine
from casemate.machine.violation import instruction_text
from casemate.memory.protection import WriteProtection

SEALED_SECONDS = 30.0
"""How long a sealed guest behind read-only slots may be silent, unless something else was asked for."""


class Watchdog:
    """Watches the threads of the vCPUs: ``seconds`` of CPU time without an access to any device are no progress.

    A guest that halts uses no CPU time and is left alone. ``seconds`` None watches sealed guests only, of which
    nothing else would tell.
    """

    def __init__(self, machine: Machine, seconds: float | None) -> None:
        livelock = machine.platform.protection.protection is WriteProtection.READONLY_SLOT
        self._can_livelock = livelock and machine.vm.capabilities.sealed_state
        self._seconds = SEALED_SECONDS if seconds is None and self._can_livelock else seconds
        self._machine = machine
        self._accesses = -1
        self._since = 0.0

    def bites(self, threads: Sequence[threading.Thread]) -> bool:
        """Whether the guest has made no progress for too long; called now and then while ``threads`` live."""
        if self._seconds is None:
            return False
        try:
            clocks = [
                time.pthread_getcpuclockid(thread.ident) for thread in threads if thread.ident is not None
            ]
            used = sum(map(time.clock_gettime, clocks))
        except OSError:  # one has just ended, and so has the run
            return False
        # Programs of flash need not come by the bus.
        accesses = self._machine.platform.bus.accesses + sum(
            unit.device.commands for unit in self._machine.platform.flash
        )
        if accesses != self._accesses:
            self._accesses, self._since = accesses, used
        return used - self._since > self._seconds

    def cause(self) -> str:
        """What to tell of it; for the time after the vCPU has stopped."""

        silence = f"{self._seconds:g} s of processor time without an access to any device"
        if self._can_livelock:
            return (
                f"{silence}: likely a direct store of a sealed guest to a read-only slot, which faults for ever;"
                " --protection vma ends it at the store"
            )
        rip = self._machine.vcpus.current.rip()
        if rip is None:
            return f"{silence}: the guest loops"
        return (
            f"{silence}: the guest loops at {rip:#x} ({instruction_text(self._machine) or 'no code there'})"
        )
