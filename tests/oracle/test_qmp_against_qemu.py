"""QEMU and casemate are told the same by QMP, good and bad; answers must agree in shape, class and text."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.qmp_guests import Booted

QEMU = "qemu-system-x86_64"
OPTIONS = ["-accel", "tcg", "-S", "-display", "none", "-nodefaults"]
END = b'{"execute": "query-status", "id": "end of it"}'
NEGOTIATED = b'{"execute": "qmp_capabilities"}'
NEWER = {"sev-type"}
"""What an older QEMU does not have yet."""

SAME_TEXT = [
    b'{"execute": "query-status"}',
    b'{"execute": "query-status", "id": {"a": [1, null]}}',
    b'{"execute": "query-status", "arguments": {}}',
    b'{"execute": "query-status", "arguments": {"foo": 1}}',
    b'{"execute": "query-status", "arguments": []}',
    b'{"execute": "query-status", "foo": 1}',
    b'{"execute": 1}',
    b'{"execute": null, "id": 5}',
    b'{"arguments": 1}',
    b'{"id": 7}',
    b"{}",
    b"[]",
    b'"text"',
    b"1",
    b"true",
    b'{"execute": "nonsense", "id": 3}',
    b'{"execute": ""}',
    b'{"execute": "qmp_capabilities"}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": 1}}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": [1]}}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": ["foo"]}}',
    b'{"execute": "qmp_capabilities", "arguments": {"enablex": []}}',
    b"{'execute': 'query-status', 'id': 'it\\'s single'}",
    b'{"execute": "query-status"}{"execute": "query-kvm"} {"execute": "query-status"}',
    b'{"execute":\r\n\t"query-status"\n}',
    b'{"execute": "query-status", "id": "\\u00e4"}',
    '{"execute": "query-status", "id": "ä"}'.encode(),
    b'{"execute": "query-status", "id": 1.5}',
    b'{"execute": "query-kvm"}',
    b'{"execute": "query-sev-launch-measure"}',
    b'{"execute": "query-sev-capabilities"}',
    b'{"execute": "sev-inject-launch-secret"}',
    b'{"execute": "sev-inject-launch-secret", "arguments": {"packet-header": "x"}}',
    b'{"execute": "sev-inject-launch-secret", "arguments": {"packet-header": 1, "secret": "y"}}',
    b'{"execute": "sev-inject-launch-secret", "arguments": {"packet-header": "x", "secret": null}}',
    b'{"execute": "sev-inject-launch-secret", "arguments": {"packet-header": "x", "secret": "y"}}',
    b'{"execute": "sev-inject-launch-secret", "arguments": {"packet-header": "x", "secret": "y", "z": 1}}',
    b'{"execute": "stop"}',
    b'{"execute": "cont", "arguments": {"x": null}}',
    b'{"execute": "quit", "arguments": {"x": null}}',
    b'{"a": 1, "a": 2}',
    *(
        b'{"execute": "sev-inject-launch-secret", "arguments": {"packet-header": "x", "secret": "y", "gpa": '
        + gpa
        + b"}}"
        for gpa in (b"1", b"-1", b"1.5", b'"0x1"', b"true", b"null", b"18446744073709551615", b"1" * 20)
    ),
]
SAME_SHAPE = [b'{"execute": "query-version"}', b'{"execute": "query-cpus-fast"}', b'{"execute": "query-sev"}']
NO_JSON = [
    b'{"execute" "query-status"}',
    b'{"execute": "query-status",}',
    b'{"execute": "query-status" "id": 1}',
    b"nonsense ",
    b"{]",
    b"[}",
    b"}",
    b",",
    b'{"execute": "query-status", "id": "\\x"}',
    b'{"execute": "query-status", "id": "never ended\n',
    b"\xff",
    b'{"a": "\xc3"}',
    b"[" * 1025 + b"\n",
]


class Peer:
    """One conversation, from its greeting on."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        while self._socket.connect_ex(str(path)):
            pass
        self._lines = self._socket.makefile("rb")
        self.greeting = self.read()

    def read(self) -> dict[str, Any]:
        message = json.loads(self._lines.readline())
        assert isinstance(message, dict)
        return message

    def tell(self, message: bytes) -> list[dict[str, Any]]:
        """All answers to a message; events are left out."""
        self._socket.sendall(message + END)
        answers = []
        while (answer := self.read()).get("id") != "end of it":
            if "event" not in answer:
                answers.append(answer)
        return answers

    def events(self, command: bytes, *names: str) -> list[dict[str, Any]]:
        """The events that a command brings, without their times; as many as there are names."""
        self._socket.sendall(command + END)
        found: list[dict[str, Any]] = []
        is_answered = False
        while len(found) < len(names) or not is_answered:
            message = self.read()
            is_answered |= message.get("id") == "end of it"
            if "event" in message:
                assert set(message.pop("timestamp")) == {"seconds", "microseconds"}
                found.append(message)
        assert tuple(event["event"] for event in found) == names
        return found

    def leave(self) -> None:
        """End the guest, and hear of it."""
        self._socket.sendall(b'{"execute": "quit"}')
        rest = self._lines.read()
        assert b"host-qmp-quit" in rest

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Sockets of a QEMU and a casemate, both paused before their start."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed")
    folder = tmp_path_factory.mktemp("qmp")
    theirs = folder / "qemu.sock"
    qemu = subprocess.Popen([QEMU, *OPTIONS, "-qmp", f"unix:{theirs},server=on,wait=off"])
    ours = Booted(folder, "--paused")
    yield theirs, ours.path
    for path in (theirs, ours.path):
        peer = Peer(path)
        peer.tell(NEGOTIATED)
        peer.leave()
        peer.close()
    assert qemu.wait(20) == 0
    assert ours.ended() == 0


@pytest.fixture
def peers(paths: tuple[Path, Path]) -> Iterator[list[Peer]]:
    made = [Peer(path) for path in paths]
    yield made
    for peer in made:
        peer.close()


def shape(value: object) -> object:
    """Types in place of values, and no more than the first of a list."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items() if name not in NEWER}
    return [shape(item) for item in value[:1]] if isinstance(value, list) else type(value)


def negotiate(peers: list[Peer]) -> None:
    for peer in peers:
        assert peer.tell(NEGOTIATED) == [{"return": {}}]


@pytest.mark.parametrize("message", SAME_TEXT, ids=lambda message: message[:90].decode())
def test_answers_are_the_same(peers: list[Peer], message: bytes) -> None:
    negotiate(peers)
    theirs, ours = (peer.tell(message) for peer in peers)
    assert ours == theirs


@pytest.mark.parametrize("message", SAME_SHAPE, ids=lambda message: message.decode())
def test_answers_have_the_same_shape(peers: list[Peer], message: bytes) -> None:
    negotiate(peers)
    theirs, ours = (peer.tell(message) for peer in peers)
    assert shape(ours) == shape(theirs)


def test_greetings_have_the_same_shape(peers: list[Peer]) -> None:
    theirs, ours = (peer.greeting for peer in peers)
    assert shape(ours["QMP"]["version"]) == shape(theirs["QMP"]["version"])
    assert set(ours["QMP"]) == set(theirs["QMP"])


@pytest.mark.parametrize("message", NO_JSON, ids=lambda message: repr(message[:40]))
def test_what_is_no_json_is_an_error_and_the_next_message_counts(peers: list[Peer], message: bytes) -> None:
    negotiate(peers)
    for peer in peers:
        (answer,) = peer.tell(message)
        assert answer["error"]["class"] == "GenericError"
        assert answer["error"]["desc"].startswith("JSON ")


@pytest.mark.parametrize("message", [*SAME_TEXT[:14], NEGOTIATED[:-1] + b', "x": 1}'])
def test_answers_before_the_negotiation_are_the_same(peers: list[Peer], message: bytes) -> None:
    theirs, ours = (peer.tell(message) for peer in peers)
    assert ours == theirs


def test_commands_are_qemus(peers: list[Peer]) -> None:
    negotiate(peers)
    theirs, ours = (
        {row["name"] for row in peer.tell(b'{"execute": "query-commands"}')[0]["return"]} for peer in peers
    )
    assert ours < theirs


def test_events_are_the_same(peers: list[Peer]) -> None:
    """Last, for it lets the guests go; what they do then differs."""
    negotiate(peers)
    steps = (
        (b'{"execute": "system_reset"}', "RESET"),
        (b'{"execute": "cont"}', "RESUME"),
        (b'{"execute": "stop"}', "STOP"),
    )
    for command, event in steps:
        theirs, ours = (peer.events(command, event) for peer in peers)
        assert ours == theirs
        status = [peer.tell(b'{"execute": "query-status"}') for peer in peers]
        assert status[0] == status[1]
