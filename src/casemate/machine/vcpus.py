"""The vCPUs of a machine: who runs them, and where they wait while the guest must not run (docs/design/machine.md)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from casemate.devices.bus import Bus, SharedBus
from casemate.errors import UnsupportedError
from casemate.machine.run_state import RunState

if TYPE_CHECKING:
    from casemate.host.hypervisor import InterruptController, Vcpu, VcpuRunner, Vm


class Vcpus:
    """All vCPUs of a VM; each is run by a thread of its own. Raises UnsupportedError if the VM takes fewer.

    ``lock`` is held by the vCPU whose access or fault is being handled, where there are more than one.
    """

    def __init__(
        self,
        vm: Vm,
        bus: Bus,
        interrupts: InterruptController | None,
        count: int,
        state: RunState,
        lock: threading.RLock,
        host_name: str,
    ) -> None:
        if count > vm.capabilities.max_vcpus:
            raise UnsupportedError(
                f"{count} vCPUs: a VM of this host ({host_name}) takes {vm.capabilities.max_vcpus}",
                f"use --cpus {vm.capabilities.max_vcpus}"
                + (", or --host kvm" if host_name == "model" else " or fewer"),
            )
        self.lock = lock
        self.thread_ids: dict[int, int] = {}
        """Which thread of the host runs each vCPU, once the run has begun."""
        self._running = threading.local()
        shared = bus if count == 1 else SharedBus(bus, lock)
        self.all: list[Vcpu] = [
            vm.create_vcpu(shared, interrupts, number=number, count=count) for number in range(count)
        ]
        self.runners: Sequence[VcpuRunner] = vm.runners()
        """What the threads run: one for each vCPU, or one for all of them."""
        self.gate = VcpuGate(self, state)

    def __len__(self) -> int:
        return len(self.all)

    @property
    def current(self) -> Vcpu:
        """The vCPU that the calling thread runs; on threads that run none, the one that starts the guest."""
        return self.all[self.current_number]

    @property
    def current_number(self) -> int:
        """The number of ``current``."""
        runner: VcpuRunner = getattr(self._running, "runner", self.runners[0])
        return runner.number

    def take(self, number: int) -> VcpuRunner:
        """A runner for the calling thread, which alone runs it from now on."""
        runner = self._running.runner = self.runners[number]
        thread = threading.get_native_id()
        self.thread_ids |= dict.fromkeys(
            [number] if len(self.runners) == len(self) else range(len(self)), thread
        )
        return runner

    def stop(self) -> None:
        """Make each thread come back to its loop soon. From any thread."""
        for runner in self.runners:
            runner.stop()

    def reset(self) -> None:
        """All of them to the reset vector; while they are parked."""
        for vcpu in self.all:
            vcpu.reset()

    def interrupt(self) -> None:
        """Make every vCPU, parked or running, look at the state of the run again. From any thread."""
        self.stop()
        self.gate.wake()


class VcpuGate:
    """Parks vCPUs: to pause or reset the guest, kick every vCPU and wait until all are parked.

    A vCPU that runs passes nothing of this; it comes here when it was stopped, or has halted for good.
    """

    def __init__(self, vcpus: Vcpus, state: RunState) -> None:
        self._vcpus = vcpus
        self._state = state
        # Over a reentrant lock, for a signal handler ends the run from whatever its thread is doing.
        self._changed = threading.Condition()
        self._parked = 0
        self.is_paused = False
        """Set before the run, its vCPUs park before their first instruction."""
        self.reset: Callable[[], None] = lambda: None
        """Makes the platform reset that was asked for, once all are parked."""

    def park(self, *, halted: bool = False) -> None:
        """Stay as long as the guest must not run, a ``halted`` vCPU until the next reset; on the vCPU's thread.

        The last one to come makes the reset that was asked for.
        """
        state = self._state
        with self._changed:
            self._parked += 1
            self._changed.notify_all()
            resets = state.resets
            while state.ending is None:
                if state.reset_wanted and self._parked == len(self._vcpus.runners):
                    self.reset()
                    self._changed.notify_all()
                elif self.is_paused or state.reset_wanted or (halted and state.resets == resets):
                    self._changed.wait()
                else:
                    break
            self._parked -= 1

    def pause(self) -> None:
        """Returns when all vCPUs are parked, or the run has ended. From a thread that runs none."""
        self.is_paused = True
        self._vcpus.stop()  # without the lock, for whom a signal interrupts in there waits for it
        with self._changed:
            self._changed.wait_for(
                lambda: self._parked == len(self._vcpus.runners) or self._state.ending is not None
            )

    def resume(self) -> None:
        """Let the vCPUs go on. From any thread."""
        with self._changed:
            self.is_paused = False
            self._changed.notify_all()

    def wake(self) -> None:
        """The run has ended, or a reset is wanted. From any thread, or a signal handler."""
        with self._changed:
            self._changed.notify_all()
