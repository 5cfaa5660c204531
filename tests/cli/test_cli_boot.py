"""``casemate boot`` as users meet it: input that is wrong, signals, a terminal, JSON (docs/guide/boot.md)."""

from __future__ import annotations

import errno
import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.booting import TinyGuest
from support.firmware_images import require_image

from casemate.cli import main
from casemate.devices.flash.file import FlashFile
from casemate.errors import HostError
from casemate.guests.entry import Bits
from casemate.machine.boot import Attachments, boot
from casemate.machine.spec import MachineSpec

CASEMATE = [sys.executable, "-m", "casemate"]
ENDING_SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
LOOPS: dict[str, tuple[str, Bits]] = {
    "jump to itself": ("jmp $", 16),
    "halt with interrupts off": ("again: cli; hlt; jmp again", 16),
    "wait on the timer": ("mov dx, 0x608; again: in eax, dx; test al, 1; jmp again", 32),
}
PROMPT = "mov dx, 0x3f8; mov al, 0x3e; out dx, al;"
EXIT = "mov al, 0x2a; out 0xf4, al"


@pytest.fixture
def stock(tmp_path: Path) -> tuple[str, str]:
    """A stock pair; the variables are a copy."""
    variables = tmp_path / "vars.fd"
    variables.write_bytes(require_image("OVMF_VARS_4M.fd", "bookworm").read_bytes())
    return str(require_image("OVMF_CODE_4M.fd", "bookworm")), str(variables)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line about an input that is refused with exit code 4."""
    quiet = [] if "--serial" in arguments else ["--serial", "none"]
    assert main(["boot", "--timeout", "5", *quiet, *arguments]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("casemate: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\x00" * 4097, "multiple"),
        (b"QFI\xfb" + bytes(4092), "qcow2"),
        (bytes(9 << 20), "8 MiB|8388608"),
    ],
    ids=["empty", "odd size", "qcow2", "too large"],
)
def test_unfit_code_is_refused_by_name(
    content: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "code.fd"
    path.write_bytes(content)
    line = refused(capsys, "--code", str(path))
    assert str(path) in line
    assert any(word in line for word in says.split("|")), line


def test_bios_not_a_multiple_of_64_kib_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bios.bin"
    path.write_bytes(bytes(0x11000))
    assert "64 KiB" in refused(capsys, "--bios", str(path))


def test_missing_file_directory_and_unreadable_file_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nowhere.fd" in refused(capsys, "--code", str(tmp_path / "nowhere.fd"))
    assert "directory" in refused(capsys, "--code", str(tmp_path))
    if os.geteuid() != 0:  # root reads everything
        secret = tmp_path / "secret.fd"
        secret.write_bytes(bytes(4096))
        secret.chmod(0)
        assert "secret.fd" in refused(capsys, "--code", str(secret))


def test_variables_given_as_code_are_refused(
    stock: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "variable store" in refused(capsys, "--code", stock[1], "--vars", stock[0])


def test_pair_of_different_builds_is_refused(
    stock: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code_2m = str(require_image("OVMF_CODE.fd", "bookworm"))
    line = refused(capsys, "--code", code_2m, "--vars", stock[1])
    assert code_2m in line or stock[1] in line


def test_image_that_needs_smm_is_refused(stock: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    secboot = str(require_image("OVMF_CODE_4M.secboot.fd", "bookworm"))
    assert "SMM" in refused(capsys, "--code", secboot, "--vars", stock[1])


def test_variables_in_use_by_another_guest_are_refused(
    stock: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = FlashFile.open(stock[1], readonly=False)
    try:
        assert "another guest" in refused(capsys, "--code", stock[0], "--vars", stock[1])
    finally:
        other.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bios", "a", "--vars", "b"], "--vars"),
        (["--bios", "GUEST", "--serial", "tcp:1"], "--serial"),
        (["--bios", "GUEST", "--json", "--serial", "stdio"], "standard output"),
        (["--code", "x", "--vars-template", "y", "--name", "a/b"], "--name"),
        (["--bios", "GUEST", "--vars-template", "y"], "--vars-template"),
    ],
)
def test_options_that_contradict_are_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tiny_guest: TinyGuest
) -> None:
    if "--bios" not in arguments:
        arguments = (
            ["--bios", str(tiny_guest("hlt", 16)), *arguments] if "--name" not in arguments else arguments
        )
    if "--name" in arguments:
        arguments += ["--code", "x", "--vars-template", "y"]
    assert says in refused(capsys, *arguments)


@pytest.mark.parametrize(
    "arguments", [["--memory", "lots"], ["--timeout", "-1"], ["--machine", "vax"], ["--nonsense"]]
)
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["boot", *arguments])
    assert caught.value.code == 2


def test_no_firmware_anywhere_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("casemate.firmware.descriptors.SYSTEM_ROOTS", (tmp_path,))
    monkeypatch.delenv("CASEMATE_FIRMWARE", raising=False)
    assert main(["boot"]) == 5
    assert "ovmf" in capsys.readouterr().err


def test_full_disk_while_copying_the_template_leaves_nothing_behind(
    stock: tuple[str, str], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    arguments = [*CASEMATE, "boot", "--code", stock[0], "--vars-template", stock[1], "--timeout", "5"]
    limit = 100_000  # bytes: less than the write, as a full disk or quota would have it

    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run(
        arguments,
        env=os.environ | {"XDG_STATE_HOME": str(state)},
        capture_output=True,
        text=True,
        preexec_fn=restrict,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("casemate: error: ")
    assert os.strerror(errno.EFBIG) in done.stderr
    assert [path for path in state.rglob("*") if path.is_file()] == []


def test_full_disk_while_the_guest_writes_variables_names_file_and_offset(
    tmp_path: Path, tiny_guest: TinyGuest
) -> None:
    target = 0x1_0000_0000 - 0x20000 + 0xF000
    cycles = (0x10, 0x41, 0xFF)
    code = "".join(f"mov byte [{target}], {byte};" for byte in cycles) + "jmp $"
    variables = tmp_path / "vars.fd"
    variables.write_bytes(b"\xee" * 0x10000)
    spec = MachineSpec(
        code=tiny_guest(code, name="code.fd"), variables=variables, machine="bare", memory=4 << 20
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # A file-size limit is what a process without privilege can have of a full disk.
        shrink = Attachments(
            on_start=lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (0x8000, limits[1]))
        )
        with pytest.raises(HostError, match="pwrite") as caught:
            boot(spec, timeout=20, attachments=shrink)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert f"{variables} at offset 0xf000" in str(caught.value)
    assert variables.read_bytes() == b"\xee" * 0x10000


@pytest.mark.parametrize("loop", LOOPS)
def test_timeout_ends_any_loop(loop: str, capsys: pytest.CaptureFixture[str], tiny_guest: TinyGuest) -> None:
    path = tiny_guest(*LOOPS[loop])
    assert main(["boot", "--bios", str(path), "--machine", "bare", "--timeout", "0.3", "--json"]) == 7
    assert json.loads(capsys.readouterr().out)["outcome"] == "timeout"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("number", "code", "word"), ENDING_SIGNALS)
def test_signal_ends_any_loop_with_a_full_outcome(
    loop: str, number: int, code: int, word: str, tmp_path: Path, tiny_guest: TinyGuest
) -> None:
    # The guest says on its serial port that it runs, so that the signal finds it running.
    body, bits = LOOPS[loop]
    path = tiny_guest("mov dx, 0x3f8; mov al, 0x21; out dx, al;" + body, bits)
    serial = tmp_path / "serial"
    os.mkfifo(serial)
    process = subprocess.Popen(
        [
            *CASEMATE,
            "boot",
            "--bios",
            path,
            "--machine",
            "bare",
            "--json",
            "--serial",
            f"file:{serial}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with serial.open("rb") as reader:
        assert reader.read(1) == b"!"
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == code, err
    outcome = json.loads(out)
    assert (outcome["outcome"], outcome["exit_code"]) == (word, code)
    assert outcome["bios"]["file"] == str(path)


def test_json_has_the_documented_fields(capsys: pytest.CaptureFixture[str], tiny_guest: TinyGuest) -> None:
    path = tiny_guest(EXIT, 16)
    assert main(["boot", "--bios", str(path), "--machine", "bare", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    fields = {
        "version", "outcome", "exit_code", "seconds", "warnings", "host", "guest", "flash", "protection_audit",
        "launch", "measurement", "writes", "phases", "unclaimed", "exit_port", "serial",
    }  # fmt: skip
    assert fields <= set(document)
    assert set(document["host"]) >= {"backend", "era", "modelled", "why"}
    assert set(document["guest"]) >= {"kind", "vcpus", "memory", "features"}
    assert document["exit_port"] == 0x2A
    assert document["host"]["modelled"] is True


def test_guest_that_dies_ends_with_1(capsys: pytest.CaptureFixture[str], tiny_guest: TinyGuest) -> None:
    path = tiny_guest("lidt [0]; ud2")  # an IDT of size 0
    assert main(["boot", "--bios", str(path), "--machine", "bare", "--serial", "none", "--timeout", "5"]) == 1
    assert "triple-fault" in capsys.readouterr().err


def test_guest_that_ends_before_the_text_ends_with_1(
    capsys: pytest.CaptureFixture[str], tiny_guest: TinyGuest
) -> None:
    path = tiny_guest(EXIT, 16)
    assert (
        main(["boot", "--bios", str(path), "--machine", "bare", "--until", "never", "--serial", "none"]) == 1
    )
    assert "before it printed" in capsys.readouterr().err


def test_variables_are_kept_for_each_guest_by_name(
    stock: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in ("one", "two"):
        arguments = [
            "--code",
            stock[0],
            "--vars-template",
            stock[1],
            "--name",
            name,
            "--json",
            "--timeout",
            "0.1",
        ]
        assert main(["boot", *arguments]) == 7
        document = json.loads(capsys.readouterr().out)
        assert document["flash"][1]["file"] == str(tmp_path / "casemate" / name / "OVMF_CODE_4M.vars.fd")


def read_until(fd: int, text: bytes, seconds: float = 30) -> bytes:
    seen = b""
    end = time.monotonic() + seconds
    while text not in seen and time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            seen += os.read(fd, 4096)
    assert text in seen, seen[-500:]
    return seen


@contextmanager
def on_a_terminal(path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, int, list[Any]]]:
    """A guest on a terminal: its process, both ends of the terminal, and the settings from before."""
    leader, follower = pty.openpty()
    before = termios.tcgetattr(follower)
    process = subprocess.Popen(
        [*CASEMATE, "boot", "--bios", path, "--machine", "bare", "--memory", "4M"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    try:
        yield process, leader, follower, before
    finally:
        process.kill()
        os.close(leader)
        os.close(follower)


def test_terminal_is_a_console_and_is_restored(tiny_guest: TinyGuest) -> None:
    echo = """
        echo:   mov dx, 0x3fd
        poll:   in al, dx
                test al, 1
                je poll
                mov dx, 0x3f8
                in al, dx
                out dx, al
                jmp echo
    """
    path = tiny_guest(PROMPT + echo)
    with on_a_terminal(path) as (process, leader, follower, before):
        read_until(leader, b">")
        assert termios.tcgetattr(follower)[3] & termios.ECHO == 0
        os.write(leader, b"knock")
        read_until(leader, b"knock")
        os.write(leader, b"\x01x")
        assert process.wait() == 0
        read_until(leader, b"left")
        assert termios.tcgetattr(follower) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_terminal_is_restored_after_a_signal(number: int, tiny_guest: TinyGuest) -> None:
    path = tiny_guest(PROMPT + "jmp $")
    with on_a_terminal(path) as (process, leader, follower, before):
        read_until(leader, b">")
        process.send_signal(number)
        assert process.wait() in (130, 143)
        assert termios.tcgetattr(follower) == before


@pytest.mark.parametrize("guest", ["plain", "sev"])
def test_engine_has_nothing_to_say_of_its_own(guest: str, tiny_guest: TinyGuest) -> None:
    path = tiny_guest("mov al, 7; out 0xf4, al")
    line = [*CASEMATE, "boot", "--host", "model", "--guest", guest, "--bios", str(path), "--json"]
    done = subprocess.run([*line, "--timeout", "20"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
