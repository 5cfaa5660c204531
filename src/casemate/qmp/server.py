"""The socket: one client after another, on a thread of its own, none of whom can hurt the guest (unix(7))."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from casemate.errors import HostError
from casemate.qmp.protocol import Conversation

_READ_SIZE = 4096
_MAX_UNREAD = 1 << 20
"""Bytes that a client may leave unread; with more it is taken for dead."""
_MAX_EVENTS = 1000
_FAREWELL_SECONDS = 0.5


class QmpServer:
    """Serves a Unix socket at ``path``; ``converse`` begins a conversation with each client."""

    def __init__(self, path: str, converse: Callable[[], Conversation]) -> None:
        self._path = path
        self._converse = converse
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._events: deque[bytes] = deque(maxlen=_MAX_EVENTS)
        self._closing = False
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)

    def listen(self) -> None:
        """Make the socket. Raises HostError."""
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(self._path)
            listener.listen()
        except OSError as error:
            listener.close()
            remedy = "remove the file, or choose a path of less than 108 bytes that can be written"
            raise HostError("bind", error.errno or 0, f"{self._path}: {error}", remedy) from None
        self._listener = listener

    def start(self) -> None:
        """Serve from now on; once is enough."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="casemate-qmp", daemon=True)
            self._thread.start()

    def emit(self, event: bytes) -> None:
        """Send to whoever listens; from any thread, never waits."""
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """Send what there is to a client that reads, hang up and remove the socket; harmless when repeated."""
        self._closing = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        self._waker.close()
        self._woken.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with suppress(OSError):
                os.unlink(self._path)

    def _wake(self) -> None:
        with suppress(OSError):  # full, which wakes all the same; or closed
            self._waker.send(b"!")

    def _serve(self) -> None:
        listener = self._listener
        assert listener is not None
        while not self._closing:
            self._events.clear()
            if self._wait(listener, select.POLLIN):
                client, _ = listener.accept()
                with client, suppress(OSError):  # it hung up
                    client.setblocking(False)
                    self._serve_client(client)

    def _serve_client(self, client: socket.socket) -> None:
        conversation = self._converse()
        unsent, hears_events = bytearray(conversation.greeting), False
        while len(unsent) < _MAX_UNREAD:
            unsent += self._take_events(hears_events)
            if self._closing:
                client.settimeout(_FAREWELL_SECONDS)
                client.sendall(unsent)
                return
            # Who does not read is not read from.
            if self._wait(client, select.POLLOUT if unsent else select.POLLIN):
                if unsent:
                    del unsent[: client.send(unsent)]
                    continue
                data = client.recv(_READ_SIZE)
                if not data:
                    return
                for answer in conversation.receive(data):
                    unsent += self._take_events(hears_events) + answer
                    hears_events = conversation.is_negotiated

    def _take_events(self, wanted: bool) -> bytes:
        events = b"".join(self._events.popleft() for _ in range(len(self._events)))
        return events if wanted else b""

    def _wait(self, peer: socket.socket, for_what: int) -> bool:
        """Until the peer is ready, or somebody wakes the thread; whether the peer is."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        poll.register(peer, for_what)
        ready = {fd for fd, _ in poll.poll()}
        if self._woken.fileno() in ready:
            self._woken.recv(_READ_SIZE)
        return peer.fileno() in ready
