"""The vCPUs of a modelled guest take turns on one thread (docs/decisions/0010-turns.md)."""

from __future__ import annotations

import ctypes

from casemate.host.clock import NANOSECONDS, GuestClock
from casemate.host.exits import Hlt, Interrupted, VmExit
from casemate.host.hypervisor import InterruptController
from casemate.host.model.cpu.hooks import EngineHooks
from casemate.host.model.cpu.records import GroupRecord
from casemate.host.model.run_control import RunControl, ThreadControl
from casemate.host.model.ticker import Ticker
from casemate.host.model.vcpu import Activity, ModelVcpu

TURN_SECONDS = 0.001
"""How long a vCPU executes at least while another one waits for its turn, and half of how long at most."""
_LOOK_SECONDS = 0.002
"""How often somebody looks whether another one has work, while none has."""


class CpuGroup:
    """vCPUs over the same memory, of which one executes at a time; each is run alone, in an order of others."""

    runs_them = False
    """Whether one thread runs all of them by ``run``."""

    def __init__(self) -> None:
        self.control: RunControl = ThreadControl()
        self._record = GroupRecord()
        self._vcpus: list[ModelVcpu] = []
        self._hooks: list[EngineHooks] = []

    @property
    def others_wait_at(self) -> int:
        """Address of a word that says whether another one waits for its turn, which PAUSE ends then."""
        return ctypes.addressof(self._record) + GroupRecord.others_wait.offset

    def add(self, vcpu: ModelVcpu, hooks: EngineHooks) -> None:
        """The next one."""
        self._vcpus.append(vcpu)
        self._hooks.append(hooks)
        hooks.join(self._hooks[0], self._record)

    def look_around(self) -> None:
        """Nothing to do: each looks for itself."""

    def memory_written(self) -> None:
        """Code was written to: no vCPU may execute what it translated before."""
        for vcpu in self._vcpus:
            vcpu.forget_translations()

    def close(self) -> None:
        """Nothing to end."""


class VcpuGroup(CpuGroup):
    """Runs those that are added, one after the other in the order of their numbers.

    A turn ends when its vCPU halts, spins (PAUSE), or has executed for one to two milliseconds while another could;
    always between two blocks of instructions. Idle time is skipped when nobody has anything to execute.
    ``interrupts`` are those of the first vCPU.
    """

    runs_them = True

    def __init__(self, clock: GuestClock, interrupts: InterruptController | None) -> None:
        super().__init__()
        self._clock = clock
        self._interrupts = interrupts
        self._current = 0
        self._turns = 0
        self._looked_at_turn = 0
        self._ticker = Ticker(clock, self._look)
        clock.on_skip = self._skipped
        if interrupts is not None:
            interrupts.on_deadline = self._ticker.add_due
        self._ticker.start()

    @property
    def number(self) -> int:
        """Of the vCPU whose turn it is, or was last."""
        return self._current

    def run(self) -> VmExit:
        """Run all of them until something happens to one that the bus cannot handle; ``number`` says to which."""
        if (refusal := self._vcpus[0].refusal()) is not None:
            return refusal
        while True:
            if self.control.stop_requested():
                self.control.take_stop()
                return Interrupted()
            vcpu = self._next()
            if vcpu is None:
                if all(vcpu.activity is not Activity.HALTED for vcpu in self._vcpus):
                    return Hlt(interrupts_enabled=False)
                self._idle()
            elif (vm_exit := self._run_turn(vcpu)) is not None:
                return vm_exit

    def stop(self) -> None:
        """Make ``run`` return soon; from any thread."""
        self.control.request_stop()
        self._vcpus[self._current].interrupt_turn()

    def wake(self) -> None:
        """Look soon for interrupts and input that came; from any thread."""
        self.control.wake()

    def look_around(self) -> None:
        """Does another vCPU want its turn?"""
        current = self._vcpus[self._current]
        self._record.others_wait = any(vcpu.wants_turn() for vcpu in self._vcpus if vcpu is not current)

    def close(self) -> None:
        """End the ticker."""
        self._ticker.close()

    def _next(self) -> ModelVcpu | None:
        count = len(self._vcpus)
        order = (self._vcpus[(self._current + step) % count] for step in range(1, count + 1))
        return next((vcpu for vcpu in order if vcpu.is_ready()), None)

    def _run_turn(self, vcpu: ModelVcpu) -> VmExit | None:
        self._current = vcpu.number
        self._turns += 1
        if self._interrupts is not None:
            self._interrupts.executing = vcpu.number
        self.look_around()
        self._ticker.executing.set()
        vm_exit = vcpu.run_turn()
        self._ticker.executing.clear()
        return vm_exit

    def _idle(self) -> None:
        times = [vcpu.deadline() for vcpu in self._vcpus if vcpu.activity is Activity.HALTED]
        deadline = min((time for time in times if time is not None), default=None)
        wait = None if deadline is None else self._clock.idle_until(deadline)
        if wait != 0:
            self.control.wait(wait)

    def _skipped(self, nanoseconds: int) -> None:
        self._hooks[0].advance_tsc(nanoseconds)
        for hooks in self._hooks[1:]:
            hooks.tsc_offset = self._hooks[0].tsc_offset

    def _look(self) -> float:
        current = self._vcpus[self._current]
        self.look_around()  # what is due may have been raised for another vCPU by whoever asked for its own
        if self.control.stop_requested() or (
            self._record.others_wait and self._turns == self._looked_at_turn
        ):
            current.interrupt_turn()
        self._looked_at_turn = self._turns
        wait = self._until_timer()
        if wait <= 0:
            current.kick()
            return TURN_SECONDS
        return wait

    def _until_timer(self) -> float:
        """Seconds until a timer is due that a vCPU waits for, at most until it is time to look again."""
        most = TURN_SECONDS if self._record.others_wait else _LOOK_SECONDS
        times = [vcpu.deadline() for vcpu in self._vcpus]
        deadline = min((time for time in times if time), default=None)
        return most if deadline is None else min((deadline - self._clock.now()) / NANOSECONDS, most)
