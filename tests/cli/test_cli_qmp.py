"""`--qmp` and `--paused` by command: signals and time end a guest that waits, and what does not go together."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.confidential_launches import write_guest
from support.hosts import kvm_or_skip

from casemate.cli import main
from casemate.guests.entry import make_image

SPIN = b"\xeb\xfe"
GUESTS = {
    "model": "--host model --machine bare --memory 4M",
    "kvm": "--host kvm --machine bare --memory 4M",
    "sev": "--host model --guest sev --memory 16M",
    "sev-es": "--host model --guest sev-es --memory 16M",
}


def line(folder: Path, guest: str, *more: str) -> list[str]:
    if guest == "kvm":
        kvm_or_skip()
    image = write_guest(folder, SPIN)
    where = f"unix:{folder / 'qmp.sock'}"
    return ["boot", *GUESTS[guest].split(), "--bios", str(image), "--serial", "none", "--qmp", where, *more]


@contextmanager
def waiting(words: list[str], path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose guest waits: its greeting says so."""
    process = subprocess.Popen([sys.executable, "-m", "casemate", *words], stderr=subprocess.PIPE)
    with socket.socket(socket.AF_UNIX) as client:
        while client.connect_ex(str(path)):
            assert process.poll() is None
        assert client.recv(1000).startswith(b'{"QMP"')
        yield process
        process.communicate()


@pytest.mark.parametrize("guest", GUESTS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_paused_guest(tmp_path: Path, guest: str, number: signal.Signals, code: int) -> None:
    path = tmp_path / "qmp.sock"
    with waiting(line(tmp_path, guest, "--paused"), path) as process:
        process.send_signal(number)
        assert process.wait() == code
    assert not path.exists()


@pytest.mark.parametrize("guest", GUESTS)
def test_timeout_ends_a_paused_guest(tmp_path: Path, guest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line(tmp_path, guest, "--paused", "--timeout", "0.5")) == 7
    assert "timeout" in capsys.readouterr().err
    assert not (tmp_path / "qmp.sock").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--paused", "--paused: nobody could let the guest go; add --qmp unix:PATH"),
        ("--qmp tcp:localhost:4444", "--qmp 'tcp:localhost:4444' is not known; use unix:PATH"),
        ("--qmp unix:", "--qmp 'unix:' is not known"),
        ("--qmp unix:x --cut-power-at all", "--qmp is for one boot"),
        ("--qmp unix:x --paused --guest sev --attest-cmd true", "one owner is asked"),
        ("-- -S", "--paused: nobody could let the guest go"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["boot", *words.split()]) == 4
    assert says in capsys.readouterr().err


def test_socket_that_exists_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = line(tmp_path, "model")
    (tmp_path / "qmp.sock").touch()
    assert main(words) == 5
    assert "remove the file" in capsys.readouterr().err
    assert (tmp_path / "qmp.sock").exists()


def test_qemus_spelling_means_the_same(tmp_path: Path) -> None:
    (tmp_path / "guest.bin").write_bytes(make_image(SPIN, 32))
    path = tmp_path / "qmp.sock"
    qemu = ["-bios", str(tmp_path / "guest.bin"), "-qmp", f"unix:{path},server=on,wait=off", "-S"]
    with waiting(["boot", "--host", "model", "--serial", "none", "--", *qemu], path) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
