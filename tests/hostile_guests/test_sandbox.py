"""The sandbox that a guest runs in: what code inside the process can still do, and that the run lacks nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.firmware_images import require_image

from casemate.guests.entry import make_image

LEAVE = "b0 07 e6 f4 eb fe"
"""mov al, 7; out 0xf4, al; jmp $"""
STAY = "eb fe"
RANDOM = "0f c7 f0 0f c7 f3 39 d8 75 02 eb fe b0 07 e6 f4 eb fe"
"""rdrand eax; rdrand ebx; cmp eax, ebx; jne .leave; jmp $; .leave: as above"""
NO_RANDOM = """
import ctypes, struct
from support.guest_rig import ModelRig
libc = ctypes.CDLL(None)
# Load the number of the system call; getrandom (318) fails with EAGAIN, all others are allowed.
lines = (0x20, 0, 0, 0), (0x15, 0, 1, 318), (0x06, 0, 0, 0x5000B), (0x06, 0, 0, 0x7FFF0000)
code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in lines))
with ModelRig(bytes.fromhex("0fc7f0 0f920425 00002000 f4"), 64) as rig:  # rdrand eax; setc [0x200000]; hlt
    rig.put(0x200000, b"?")
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, struct.pack("@HP", len(lines), ctypes.addressof(code))) == 0  # PR_SET_SECCOMP
    rig.run()
    print(rig.ram_at(0x200000, 1))
"""
ATTACK = """
import ctypes, errno, fcntl, json, os, socket, struct, sys, threading
from casemate import cli
from casemate.devices.exit_port import ExitPort

def in_thread(attempt):
    failed = []
    def run():
        try:
            attempt()
        except OSError as error:
            failed.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]

def system_call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

libc = ctypes.CDLL(None, use_errno=True)
ATTEMPTS = {
    "read a file": lambda: open("victim"),
    "read a file in a new thread": lambda: in_thread(lambda: open("victim")),
    "make a file": lambda: open("new", "w"),
    "remove a file": lambda: os.unlink("victim"),
    "rename a file": lambda: os.rename("victim", "other"),
    "cut a file short": lambda: os.truncate("victim", 0),
    "make it executable": lambda: os.chmod("victim", 0o777),
    "list a folder": lambda: os.listdir("."),
    "make a folder": lambda: os.mkdir("folder"),
    "make a link": lambda: os.symlink("victim", "link"),
    "make a socket of the internet": lambda: socket.socket(),
    "make a Unix socket": lambda: socket.socket(socket.AF_UNIX),
    "start a program": lambda: os.execv("/bin/true", ["true"]),
    "make a process": os.fork,
    "signal its parent": lambda: os.kill(os.getppid(), 0),
    "trace itself": lambda: system_call(101, 0, 0, 0, 0),
    "type at the terminal": lambda: fcntl.ioctl(0, 0x5412, b"x"),
    "use another table of system calls": lambda: system_call(0x40000000 + 39),
    "become another user": lambda: os.setuid(0),
}
result = os.open("result", os.O_WRONLY | os.O_CREAT)
write_port = ExitPort.write_port

def attack(self, offset, size, value):
    found = {}
    for name, attempt in ATTEMPTS.items():
        if "--no-sandbox" in sys.argv and name != "make a file":
            continue
        try:
            attempt()
            found[name] = 0
        except OSError as error:
            found[name] = error.errno
    os.write(result, json.dumps(found).encode())
    return write_port(self, offset, size, value)

ExitPort.write_port = attack
cli.start()
"""


def attacked(folder: Path, *words: str) -> tuple[int, dict[str, int]]:
    """Exit code of a boot, and what the attempts of code inside its process came to."""
    (folder / "victim").write_text("of the user")
    (folder / "guest.bin").write_bytes(make_image(bytes.fromhex(LEAVE), 32))
    line = [sys.executable, "-c", ATTACK, "boot", "--host", "model", "--bios", "guest.bin", "--timeout", "60"]
    done = subprocess.run([*line, *words], cwd=folder, stdin=subprocess.DEVNULL, check=False)
    found: dict[str, int] = json.loads((folder / "result").read_text())
    return done.returncode, found


def boot(folder: Path, code: str, *words: str, **more: Any) -> subprocess.Popen[bytes]:
    (folder / "guest.bin").write_bytes(make_image(bytes.fromhex(code), 32))
    line = [sys.executable, "-m", "casemate", "boot", "--host", "model", "--bios", "guest.bin"]
    return subprocess.Popen([*line, *words], cwd=folder, stdin=subprocess.DEVNULL, **more)


def test_code_inside_the_process_can_reach_nothing_outside(tmp_path: Path) -> None:
    code, found = attacked(tmp_path)
    assert code == 0
    assert set(found.values()) <= {errno.EPERM, errno.EACCES}, found
    assert (tmp_path / "victim").read_text() == "of the user"
    assert {path.name for path in tmp_path.iterdir()} == {"victim", "guest.bin", "result"}


def test_without_the_sandbox_it_can(tmp_path: Path) -> None:
    _, found = attacked(tmp_path, "--no-sandbox")
    assert found["make a file"] == 0


def test_run_says_what_is_in_force(tmp_path: Path) -> None:
    told = []
    for words in ((), ("--no-sandbox",)):
        with boot(tmp_path, LEAVE, "--json", *words, stdout=subprocess.PIPE) as process:
            told.append(json.loads(process.communicate()[0])["host"]["sandbox"])
    assert told[0]["no_new_privileges"]
    assert told[0]["seccomp"]
    assert told[1] is None


def test_reports_are_written_and_sockets_removed_from_outside(tmp_path: Path) -> None:
    words = ("--report", "run.html", "--report", "run.json", "--qmp", "unix:qmp", "--serial", "unix:serial")
    with boot(tmp_path, LEAVE, "--timeout", "60", *words) as process:
        assert process.wait() == 0
    assert json.loads((tmp_path / "run.json").read_text())["outcome"] == "exit-port"
    assert "</html>" in (tmp_path / "run.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"guest.bin", "run.json", "run.html"}


def test_killed_run_leaves_no_socket(tmp_path: Path) -> None:
    with boot(tmp_path, STAY, "--qmp", "unix:qmp", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        with socket.socket(socket.AF_UNIX) as client:
            while client.connect_ex(str(tmp_path / "qmp")):
                os.sched_yield()
            client.recv(1)  # served, so the guest is about to run
            process.send_signal(signal.SIGKILL)
            process.stderr.read()  # to its end: the process outside has ended, too
    assert not (tmp_path / "qmp").exists()


def test_report_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with boot(tmp_path, LEAVE, "--report", "/proc/run.json", stderr=subprocess.PIPE) as process:
        _, error = process.communicate()
    assert process.returncode == 5
    assert b"/proc/run.json" in error
    assert b"Traceback" not in error


@pytest.mark.parametrize(("guest", "size"), [("plain", "_4M"), ("sev-es", "")])
def test_run_asks_for_nothing_that_is_refused(tmp_path: Path, guest: str, size: str) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    code, variables = require_image(f"OVMF_CODE{size}.fd"), tmp_path / "vars.fd"
    variables.write_bytes(require_image(f"OVMF_VARS{size}.fd").read_bytes())
    line = [strace, "-f", "-o", str(tmp_path / "calls"), "-e", "trace=%file,%process,%network"]
    line += [sys.executable, "-m", "casemate", "boot", "--host", "model", "--code", str(code)]
    line += ["--vars", str(variables), "--until", "Shell> ", "--guest", guest, "--machine", "pc"]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if b"ptrace" in done.stderr:
        pytest.skip("nothing can be traced here")
    assert done.returncode == 0, done.stderr.decode()
    refused = [
        call for call in (tmp_path / "calls").read_text("utf-8", "replace").splitlines() if "EPERM" in call
    ]
    assert not refused


def test_guest_gets_random_numbers(tmp_path: Path) -> None:
    with boot(tmp_path, RANDOM, "--timeout", "60") as process:
        assert process.wait() == 0


def test_random_numbers_are_the_kernels_and_a_guest_is_told_where_there_is_none() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    line = [sys.executable, "-c", NO_RANDOM]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == f"{bytes(1)!r}\n", done.stderr
