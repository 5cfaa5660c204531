"""One guest as its QMP clients see and drive it (QEMU qapi/run-state.json, system/runstate.c)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from casemate.confidential.preparation import AttestationRequest, LaunchAbandoned, PreparedLaunch
from casemate.host.secure_processor import LaunchMeasurement
from casemate.machine.machine import Machine
from casemate.machine.outcome import Ending, LaunchRecord
from casemate.qmp.events import (
    BY_CLIENT,
    BY_GUEST,
    GUEST_PANICKED,
    RESET,
    RESUME,
    SHUTDOWN,
    STOP,
    run_state,
    shutdown_data,
)

_POLL_SECONDS = 0.2


class GuestControl:
    """What commands act on; they run on the server's thread, one at a time. ``emit`` sends an event to the client.

    A ``paused`` guest waits for ``cont``: before its first instruction, or, one of SEV or SEV-ES, before its launch is
    finished, in ``attest``, for at most ``timeout`` seconds.
    """

    def __init__(
        self, emit: Callable[[str, dict[str, Any] | None], None], *, paused: bool, timeout: float | None
    ) -> None:
        self.prepared: PreparedLaunch | None = None
        self.measurement: LaunchMeasurement | None = None
        """Of a SEV or SEV-ES guest, once it is measured."""
        self.request: AttestationRequest | None = None
        """The launch that waits; read and used with ``lock`` held."""
        self.lock = threading.Lock()
        self._emit = emit
        self._machine: Machine | None = None
        self._timeout = timeout
        self._may_go = threading.Event()
        self._has_run = not paused
        self._resets_asked = False

    @property
    def machine(self) -> Machine:
        """The guest's machine; no client is heard before there is one."""
        assert self._machine is not None
        return self._machine

    # --- for who boots the guest

    def attach(self, machine: Machine, prepared: PreparedLaunch | None) -> None:
        """Of this machine, which is just created."""
        self._machine, self.prepared = machine, prepared
        machine.state.on_reset = self._on_reset

    def launched(self, record: LaunchRecord) -> None:
        """The launch is over; clients may ask what it measured."""
        shown = record.measurement or {}
        if "mac" in shown:
            self.measurement = LaunchMeasurement(bytes.fromhex(shown["mac"]), bytes.fromhex(shown["nonce"]))

    def about_to_run(self) -> None:
        """The machine is ready; a guest that nobody has let go parks before its first instruction."""
        if not self._has_run:  # else a client may have stopped it already, behind its launch
            self.machine.vcpus.gate.is_paused = True

    def attest(self, request: AttestationRequest, serve: Callable[[], None]) -> None:
        """Let clients, which ``serve`` lets in, look at the measured guest, and inject secrets, until one lets it go.

        Raises LaunchAbandoned if the run was ended instead.
        """
        state = self.machine.state
        self.request, self.measurement = request, request.measurement
        serve()
        deadline = None if self._timeout is None else monotonic() + self._timeout
        while state.ending is None and not self._may_go.wait(_POLL_SECONDS):
            if deadline is not None and monotonic() > deadline:
                state.end(Ending.TIMEOUT)
        with self.lock:
            self.request = None
        if state.ending is not None:
            raise LaunchAbandoned("the run was ended before the launch was finished")

    def tell_the_end(self) -> None:
        """Tell the client how the run ended; a run that never began ends here."""
        if self._machine is None:
            return
        state = self._machine.state
        if state.ending is None:  # its launch failed; a command may wait for vCPUs that never come
            state.end(Ending.HOST_LIMIT)
        ending = state.ending or Ending.HOST_LIMIT
        if ending is Ending.KERNEL_PANIC:
            self._emit(GUEST_PANICKED, {"action": "poweroff"})
        asked = ending is Ending.RESET and self._resets_asked
        self._emit(SHUTDOWN, BY_CLIENT if asked else shutdown_data(ending))

    # --- for commands

    def status(self) -> str:
        """QEMU's word for what the guest does."""
        machine = self.machine
        if machine.state.ending is not None:
            return run_state(machine.state.ending)
        if not self._has_run:
            return "prelaunch"
        return "paused" if machine.vcpus.gate.is_paused else "running"

    def cont(self) -> None:
        """Let the guest run, if it does not."""
        if self.status() in ("prelaunch", "paused"):
            self._has_run = True
            self._emit(RESUME, None)
            self._may_go.set()
            self.machine.vcpus.gate.resume()

    def stop(self) -> None:
        """Returns when all vCPUs are parked."""
        if self.status() == "running":
            self.machine.vcpus.gate.pause()
            self._emit(STOP, None)

    def reset(self) -> None:
        """As the reset button does it. A guest that is being launched stands at its reset already."""
        with self.lock:
            is_launching = self.request is not None
        if is_launching:
            self._emit(RESET, BY_CLIENT)
        elif self.machine.state.ending is None:
            self._resets_asked = True
            self.machine.state.request_reset()

    def quit(self) -> None:
        """End the run."""
        self.machine.state.end(Ending.QUIT)

    def _on_reset(self) -> None:
        who, self._resets_asked = BY_CLIENT if self._resets_asked else BY_GUEST, False
        if self.machine.vcpus.gate.is_paused:
            self._has_run = False
        self._emit(RESET, who)  # last, for a client then asks how things are
