"""Serves one guest's QMP clients on a socket (QEMU docs/interop/qmp-spec)."""

from __future__ import annotations

from time import time_ns
from typing import Any

from casemate.confidential.preparation import AttestationRequest, PreparedLaunch
from casemate.machine.machine import Machine
from casemate.machine.outcome import LaunchRecord
from casemate.machine.run_loop import signals_end
from casemate.qmp.commands import make_commands
from casemate.qmp.guest_control import GuestControl
from casemate.qmp.protocol import Conversation, event
from casemate.qmp.server import QmpServer


class Monitor:
    """The socket at ``path`` and the guest behind it; its methods are for who boots the guest.

    ``paused`` and ``timeout`` are as for ``GuestControl``.
    """

    def __init__(self, path: str, *, paused: bool, timeout: float | None = None) -> None:
        self.paused = paused
        self._control = GuestControl(self._emit, paused=paused, timeout=timeout)
        self._server = QmpServer(path, lambda: Conversation(make_commands(self._control), self._about()))

    def open(self) -> None:
        """Make the socket; clients that connect wait for their greeting. Raises HostError."""
        self._server.listen()

    def attach(self, machine: Machine, prepared: PreparedLaunch | None) -> None:
        """Of this machine, which is just created."""
        self._control.attach(machine, prepared)

    def attest(self, request: AttestationRequest) -> None:
        """Serve clients while the measured guest waits. Raises LaunchAbandoned if the run was ended instead."""
        # Whoever is greeted may end the run by a signal.
        with signals_end(self._control.machine):
            self._control.attest(request, self._server.start)

    def launched(self, record: LaunchRecord) -> None:
        """The launch is over; clients may ask what it measured."""
        self._control.launched(record)

    def start(self) -> None:
        """Serve clients from now on; the machine is about to run."""
        self._control.about_to_run()
        self._server.start()

    def close(self) -> None:
        """Tell the client how it ended, hang up, and remove the socket; harmless when repeated."""
        self._control.tell_the_end()
        self._server.close()

    def _emit(self, name: str, data: dict[str, Any] | None) -> None:
        self._server.emit(event(name, time_ns(), data))

    def _about(self) -> str:
        is_model = self._control.machine.host_name == "model"
        return "the guest's processor is modelled" if is_model else "on KVM"
