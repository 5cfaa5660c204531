"""The serial port on a pseudo-terminal or a socket: bytes both ways, readers that come and go."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from casemate.cli.serial_line import SerialLine
from casemate.errors import HostError
from casemate.machine.console import Console
from casemate.testing.recording_vm import RecordingSink

RUNNING = threading.Event()


class Guest:
    """A console that keeps what is typed."""

    def __init__(self) -> None:
        self.typed = b""
        self.console = Console(RecordingSink())
        self.console.connect(self._feed, lambda: None)

    def _feed(self, data: bytes) -> None:
        self.typed += data


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def make_line(guest: Guest) -> SerialLine:
    return SerialLine(lambda: guest.console)


def test_pty_carries_bytes_both_ways(stack: ExitStack, capsys: pytest.CaptureFixture[str]) -> None:
    guest = Guest()
    line = make_line(guest)
    line.open_pty(stack)
    name = re.search(r"serial port is (/\S+)", capsys.readouterr().err)
    assert name
    with open(name[1], "r+b", buffering=0) as reader:
        line.write(b"from guest\n")
        assert os.read(reader.fileno(), 100) == b"from guest\n"
        reader.write(b"to guest\r")
        line.wait(RUNNING, 1)
    assert guest.typed == b"to guest\r"


def test_pty_without_a_reader_never_blocks(stack: ExitStack, capsys: pytest.CaptureFixture[str]) -> None:
    line = make_line(Guest())
    line.open_pty(stack)
    for _ in range(100):
        line.write(bytes(1000))
    assert "serial port is" in capsys.readouterr().err


def test_socket_serves_one_program_after_another(stack: ExitStack, tmp_path: Path) -> None:
    guest, path = Guest(), str(tmp_path / "serial")
    line = make_line(guest)
    line.listen(path, stack)
    line.write(b"nobody is there")
    for text in (b"one", b"two"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            line.wait(RUNNING, 1)
            line.write(text)
            assert client.recv(100) == text
            client.sendall(text)
            line.wait(RUNNING, 1)
        line.wait(RUNNING, 1)
        line.write(b"nobody is there")
    assert guest.typed == b"onetwo"
    stack.close()
    assert not Path(path).exists()


def test_socket_that_exists_is_refused(stack: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "serial"
    path.touch()
    with pytest.raises(HostError, match="remove the file"):
        make_line(Guest()).listen(str(path), stack)
