"""The socket: clients that come one after another, hang up, send garbage, or do not read."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import HostError
from casemate.qmp.protocol import Command, Conversation
from casemate.qmp.server import QmpServer

READY = b'{"execute": "qmp_capabilities"}'
PING, LONG = b'{"execute": "ping"}', b'{"execute": "long"}'
COMMANDS = (Command("ping", lambda: "pong"), Command("long", lambda: "x" * 1000))


class Client:
    """A plain socket that reads one message at a time."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self._lines = self.socket.makefile("rb")

    def read(self) -> Any:
        line = self._lines.readline()
        return json.loads(line) if line else None

    def ask(self, data: bytes) -> Any:
        self.socket.sendall(data)
        return self.read()

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp.sock"


@pytest.fixture
def server(path: Path) -> Iterator[QmpServer]:
    made = QmpServer(str(path), lambda: Conversation(COMMANDS, "a test"))
    made.listen()
    made.start()
    yield made
    made.close()


def greet(path: Path) -> Client:
    """A client that is through the negotiation."""
    client = Client(path)
    assert "QMP" in client.read()
    assert client.ask(READY) == {"return": {}}
    return client


def test_one_client_after_another_and_the_second_waits(server: QmpServer, path: Path) -> None:
    first = greet(path)
    second = Client(path)
    second.socket.sendall(READY)
    assert first.ask(PING) == {"return": "pong"}
    first.close()
    assert "QMP" in second.read()
    assert second.read() == {"return": {}}
    assert second.ask(PING) == {"return": "pong"}
    second.close()


def test_client_that_hangs_up_is_forgotten(server: QmpServer, path: Path) -> None:
    for sent in (b"", b'{"execute": ', b"\xff\xfe{{{", PING * 100, READY + LONG * 100):
        client = Client(path)
        client.socket.sendall(sent)
        client.close()
    assert greet(path).ask(PING) == {"return": "pong"}


def test_client_that_stops_sending_gets_its_answers(server: QmpServer, path: Path) -> None:
    client = Client(path)
    client.socket.sendall(READY + PING)
    client.socket.shutdown(socket.SHUT_WR)
    assert [client.read() for _ in range(4)][1:] == [{"return": {}}, {"return": "pong"}, None]


def test_client_that_does_not_read_is_not_read_from_and_holds_nobody_up(
    server: QmpServer, path: Path
) -> None:
    client = greet(path)
    client.socket.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            client.socket.send(LONG * 10)
    for _ in range(5000):  # it is given up when they are too many
        server.emit(b'{"event": "' + b"x" * 2000 + b'"}\r\n')
    other = greet(path)
    assert other.ask(PING) == {"return": "pong"}
    other.close()
    client.close()


def test_events_go_to_who_has_negotiated_only(server: QmpServer, path: Path) -> None:
    server.emit(b'{"event": "before"}\r\n')
    client = Client(path)
    assert "QMP" in client.read()
    server.emit(b'{"event": "too early"}\r\n')
    assert "error" in client.ask(PING)
    assert client.ask(READY) == {"return": {}}
    server.emit(b'{"event": "now"}\r\n')
    assert client.read() == {"event": "now"}
    client.close()


def test_end_sends_what_there_is_and_removes_the_socket(server: QmpServer, path: Path) -> None:
    client = greet(path)
    server.emit(b'{"event": "last"}\r\n')
    server.close()
    assert client.read() == {"event": "last"}
    assert client.read() is None
    assert not path.exists()
    server.close()
    server.emit(b"")
    client.close()


@pytest.mark.parametrize("reads", [True, False])
def test_end_waits_for_no_client(path: Path, reads: bool) -> None:
    server = QmpServer(str(path), lambda: Conversation(COMMANDS, "a test"))
    server.listen()
    server.start()
    client = greet(path)
    client.socket.sendall(PING if reads else LONG * 2000)
    closing = threading.Thread(target=server.close)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()
    client.close()


def test_socket_that_exists_or_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    for name in ("taken", "no/folder", "x" * 200):
        server = QmpServer(str(tmp_path / name), lambda: Conversation(COMMANDS, ""))
        with pytest.raises(HostError, match="bind failed"):
            server.listen()
        server.close()
    assert (tmp_path / "taken").exists()
