"""Runs a machine to its outcome: each vCPU on a thread, signals and time on the caller's (docs/design/machine.md)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from types import FrameType
from typing import Any

from casemate.devices.exit_port import status_of
from casemate.errors import CasemateError, HostError
from casemate.events import AccessPath, Violation
from casemate.host.exits import (
    Hlt,
    Interrupted,
    KvmInternalError,
    MemoryFault,
    NestedFaultLoop,
    SevTermination,
    Shutdown,
    VmExit,
)
from casemate.machine.firmware import settle_firmware
from casemate.machine.machine import Machine, Stage
from casemate.machine.outcome import Ending, LaunchRecord, Outcome
from casemate.machine.report import make_report
from casemate.machine.violation import (
    describe,
    examine,
    instruction_text,
    judge_fault,
    judge_loop,
    make_write,
)
from casemate.machine.watchdog import Watchdog
from casemate.memory.protection import OnWrite

_POLL_SECONDS = 0.2


class Run:
    """One run of one machine, once."""

    def __init__(
        self,
        machine: Machine,
        timeout: float | None,
        watchdog: float | None = None,
        launch: LaunchRecord | None = None,
        host_facts: dict[str, Any] | None = None,
        digests: bool = True,
    ) -> None:
        self._machine = machine
        self._digests = digests
        self._timeout = timeout
        self._launch = launch or LaunchRecord()
        self._host_facts = host_facts or {}
        self._watchdog = Watchdog(machine, watchdog)
        self._finished = threading.Event()
        self._error: BaseException | None = None

    def run(self, wait: Callable[[threading.Event, float], None] | None = None) -> Outcome:
        """Run until something ends it; ``wait`` is what the caller's thread does meanwhile, for some seconds at a time.

        Raises HostError if variables cannot be written; signals become endings. A machine that was ended while it was
        put together never runs.
        """
        machine = self._machine
        assert machine.stage is Stage.READY or machine.state.ending is not None
        machine.recorder.examine = partial(examine, machine)
        machine.recorder.on_violation = self._on_violation
        threads = [
            threading.Thread(target=self._vcpu_thread, args=(number,), name=f"casemate-vcpu{number}")
            for number in range(len(machine.vcpus.runners))
        ]
        deadline = None if self._timeout is None else monotonic() + self._timeout
        with signals_end(machine):
            for thread in threads:
                thread.start()
            while not self._finished.is_set():
                left = _POLL_SECONDS if deadline is None else min(_POLL_SECONDS, deadline - monotonic())
                if left <= 0:
                    machine.state.end(Ending.TIMEOUT)
                    left = _POLL_SECONDS
                (wait or _wait)(self._finished, left)
                if self._watchdog.bites(threads):
                    machine.state.end(Ending.STUCK)
                machine.vm.deliver_coalesced()
                self._settle()
            for thread in threads:
                thread.join()
        if self._error is not None:
            raise self._error
        return self._outcome(machine.recorder.seconds())

    def _settle(self) -> None:
        try:
            settle_firmware(self._machine.firmware)
        except HostError as error:
            self._error = error
            self._machine.state.end(Ending.HOST_LIMIT)

    def _vcpu_thread(self, number: int) -> None:
        machine = self._machine
        try:
            vcpu = machine.vcpus.take(number)
            machine.vcpus.gate.park()
            while machine.state.ending is None:
                self._handle(vcpu.run())
        except (CasemateError, KeyboardInterrupt) as error:
            self._error = error
            machine.state.end(Ending.HOST_LIMIT)
        except BaseException as error:
            # Whatever a guest does is an outcome; what is wrong here is ours, and the report shows where it was.
            cause = f"{type(error).__name__}: {error} ({_origin(error)})"
            machine.state.end(Ending.INTERNAL_ERROR, f"{cause}; please report it")
        finally:
            self._finished.set()

    def _handle(self, vm_exit: VmExit) -> None:
        machine = self._machine
        match vm_exit:
            case Interrupted():
                machine.vcpus.gate.park()
            case Hlt():
                # Nothing can wake it; somebody outside has to end the run, or reset it.
                if (
                    machine.console.is_waiting
                    and not machine.console.attending
                    and len(machine.vcpus.runners) == 1
                ):
                    cause = "the guest halted with its interrupts off, and nothing can wake it"
                    machine.state.end(Ending.GAVE_UP, cause)
                machine.vcpus.gate.park(halted=True)
            case Shutdown(rip):
                machine.state.end(Ending.TRIPLE_FAULT, f"the guest's CPU shut down{_at(rip)}")
            case MemoryFault():
                with machine.vcpus.lock:
                    verdict = judge_fault(machine, vm_exit)
                if not verdict.goes_on:
                    machine.state.end(Ending.VIOLATION, verdict.text)
            case NestedFaultLoop():
                machine.state.end(Ending.VIOLATION, judge_loop(machine))
            case SevTermination(detail, _):
                machine.state.end(Ending.SEV_TERMINATION, detail)
            case KvmInternalError(detail, rip):
                text = instruction_text(machine)
                machine.state.end(Ending.HOST_LIMIT, f"{detail}{_at(rip)}{f' ({text})' if text else ''}")

    def _on_violation(self, violation: Violation) -> None:
        # A write that a slot intercepts is the device's business unless the user said otherwise.
        machine = self._machine
        if violation.path in (AccessPath.FAULT, AccessPath.USERFAULT):
            return  # its verdict comes when the registers can be changed
        if violation.path is AccessPath.EMULATOR and machine.state.take_allowance():
            make_write(machine, violation)
        elif machine.spec.on_write in (OnWrite.KILL, OnWrite.ALLOW_ONCE):
            machine.state.end(Ending.VIOLATION, describe(machine, violation))

    def _outcome(self, seconds: float) -> Outcome:
        machine = self._machine
        ending = machine.state.ending or Ending.NO_PROGRESS
        detail = machine.state.detail or _DETAILS.get(ending, "")
        if ending in (Ending.POWER_OFF, Ending.EXIT_PORT, Ending.RESET) and machine.console.is_waiting:
            detail = f"the guest ended ({ending.word}) before it printed what was waited for"
            ending = Ending.NO_PROGRESS
        if ending is Ending.STUCK:
            detail = self._watchdog.cause()
        text = bytes(machine.console.text).decode(errors="replace")
        report = make_report(machine, self._launch, self._host_facts, digests=self._digests)
        value, status = machine.platform.devices.exit_port.value, None
        if machine.spec.test_device and ending is Ending.EXIT_PORT and value is not None:
            status = status_of(value)
        return Outcome(ending, detail, seconds, text, report, status)


_DETAILS = {
    Ending.UNTIL: "the text was printed",
    Ending.LEFT: "left at the console",
    Ending.QUIT: "a QMP client said quit",
    Ending.POWER_OFF: "the guest powered off",
    Ending.EXIT_PORT: "the guest wrote to the exit port",
    Ending.TIMEOUT: "timed out",
    Ending.INTERRUPTED: "interrupted",
    Ending.TERMINATED: "terminated",
}


def run(
    machine: Machine,
    timeout: float | None = None,
    wait: Callable[[threading.Event, float], None] | None = None,
    watchdog: float | None = None,
    launch: LaunchRecord | None = None,
    host_facts: dict[str, Any] | None = None,
    digests: bool = True,
) -> Outcome:
    """Run an assembled machine; ``timeout`` in seconds, ``watchdog`` as for ``Watchdog``. See ``Run``.

    ``launch`` is what its launch showed, ``host_facts`` more about the host, both for the report; ``digests`` says
    whether that has those of the firmware.
    """
    return Run(machine, timeout, watchdog, launch, host_facts, digests).run(wait)


def _wait(finished: threading.Event, seconds: float) -> None:
    finished.wait(seconds)


def _origin(error: BaseException) -> str:
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    return f"{os.path.basename(where.tb_frame.f_code.co_filename)}:{where.tb_lineno}" if where else ""


def _at(rip: int | None) -> str:
    return "" if rip is None else f" at {rip:#x}"


@contextmanager
def signals_end(machine: Machine) -> Iterator[None]:
    """SIGINT and SIGTERM end the machine's run meanwhile; on other threads than the main one, nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    endings = {signal.SIGINT: Ending.INTERRUPTED, signal.SIGTERM: Ending.TERMINATED}

    def end(number: int, _frame: FrameType | None) -> None:
        machine.state.end(endings[signal.Signals(number)])

    before = {number: signal.signal(number, end) for number in endings}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
