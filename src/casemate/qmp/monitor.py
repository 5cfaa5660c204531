"""One guest as its QMP clients see and drive it (QEMU qapi/run-state.json, system/runstate.c)."""

from __future__ import annotations

import threading
from time import monotonic, time_ns
from typing import Any

from casemate.confidential.preparation import AttestationRequest, LaunchAbandoned, PreparedLaunch
from casemate.machine.machine import Machine
from casemate.machine.outcome import Ending
from casemate.machine.run_loop import signals_end
from casemate.qmp.commands import make_commands
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
from casemate.qmp.protocol import Conversation, event
from casemate.qmp.server import QmpServer

_POLL_SECONDS = 0.2


class Monitor:
    """Commands run on the server's thread, one at a time; the others are the caller's, who boots the guest.

    A ``paused`` guest waits for ``cont``: before its first instruction, or, one of SEV or SEV-ES, before its launch is
    finished, in ``attest``, for at most ``timeout`` seconds.
    """

    def __init__(self, path: str, *, paused: bool, timeout: float | None = None) -> None:
        self.paused = paused
        self.prepared: PreparedLaunch | None = None
        self.request: AttestationRequest | None = None
        """The launch that waits; read and used with ``lock`` held."""
        self.lock = threading.Lock()
        self._machine: Machine | None = None
        self._timeout = timeout
        self._may_go = threading.Event()
        self._has_run = not paused
        self._resets_asked = False
        self._server = QmpServer(path, lambda: Conversation(make_commands(self), self._about()))

    @property
    def machine(self) -> Machine:
        """The guest's machine; no client is heard before there is one."""
        assert self._machine is not None
        return self._machine

    # --- for who boots the guest

    def open(self) -> None:
        """Make the socket; clients that connect wait for their greeting. Raises HostError."""
        self._server.listen()

    def attach(self, machine: Machine, prepared: PreparedLaunch | None) -> None:
        """Of this machine, which is just created."""
        self._machine, self.prepared = machine, prepared
        machine.on_close, machine.on_reset = self.close, self._on_reset

    def start(self, machine: Machine) -> None:
        """Serve clients from now on; the machine is about to run."""
        if not self._has_run:  # else a client may have stopped it already, behind its launch
            machine.standstill.is_paused = True
        self._server.start()

    def attest(self, request: AttestationRequest) -> None:
        """Let clients look at the measured guest, and inject secrets, until one of them lets it go.

        Raises LaunchAbandoned if the run was ended instead.
        """

        machine = self.machine
        self.request = request
        deadline = None if self._timeout is None else monotonic() + self._timeout
        with signals_end(machine):
            self._server.start()
            while machine.ending is None and not self._may_go.wait(_POLL_SECONDS):
                if deadline is not None and monotonic() > deadline:
                    machine.end(Ending.TIMEOUT)
        with self.lock:
            self.request = None
        if machine.ending is not None:
            raise LaunchAbandoned("the run was ended before the launch was finished")

    def close(self) -> None:
        """Tell the client how it ended, hang up, and remove the socket; harmless when repeated."""
        machine = self._machine
        if machine is not None:
            if machine.ending is None:  # its launch failed; a command may wait for vCPUs that never come
                machine.end(Ending.HOST_LIMIT)
            ending = machine.ending or Ending.HOST_LIMIT
            if ending is Ending.KERNEL_PANIC:
                self._emit(GUEST_PANICKED, {"action": "poweroff"})
            self._emit(SHUTDOWN, self._shutdown_data(ending))
        self._server.close()

    # --- for commands

    def status(self) -> str:
        """QEMU's word for what the guest does."""
        machine = self.machine
        if machine.ending is not None:
            return run_state(machine.ending)
        if not self._has_run:
            return "prelaunch"
        return "paused" if machine.standstill.is_paused else "running"

    def cont(self) -> None:
        """Let the guest run, if it does not."""
        if self.status() in ("prelaunch", "paused"):
            self._has_run = True
            self._emit(RESUME)
            self._may_go.set()
            self.machine.standstill.resume()

    def stop(self) -> None:
        """Returns when all vCPUs stand still."""
        if self.status() == "running":
            self.machine.standstill.pause()
            self._emit(STOP)

    def reset(self) -> None:
        """As the reset button does it. A guest that is being launched stands at its reset already."""
        with self.lock:
            is_launching = self.request is not None
        if is_launching:
            self._emit(RESET, BY_CLIENT)
        elif self.machine.ending is None:
            self._resets_asked = True
            self.machine.request_reset()

    def quit(self) -> None:
        """End the run."""
        self.machine.end(Ending.QUIT)

    def _on_reset(self) -> None:
        who, self._resets_asked = BY_CLIENT if self._resets_asked else BY_GUEST, False
        if self.machine.standstill.is_paused:
            self._has_run = False
        self._emit(RESET, who)  # last, for a client then asks how things are

    def _shutdown_data(self, ending: Ending) -> dict[str, Any]:
        return BY_CLIENT if ending is Ending.RESET and self._resets_asked else shutdown_data(ending)

    def _emit(self, name: str, data: dict[str, Any] | None = None) -> None:
        self._server.emit(event(name, time_ns(), data))

    def _about(self) -> str:
        return "the guest's processor is modelled" if self.machine.host_name == "model" else "on KVM"
