"""A QEMU under ``casemate kvm``, its serial line and its monitor (QEMU's own -accel kvm, qmp-spec)."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from support.assembler import assemble
from support.firmware_images import require_image
from support.vmm_programs import kvm_command

LIMIT = 240
"""Seconds after which a guest is taken to hang."""
TEXT = "read from the disk"
BOOT_SECTOR = """
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov sp, 0x7000
        mov ax, 0x0201          # read a sector, the second
        mov cx, 2
        mov dh, 0
        mov bx, 0x8000
        int 0x13
        mov si, 0x8000
        mov dx, 0x3f8
next:   lodsb
        test al, al
        jz ticks
        out dx, al
        jmp next
ticks:  sti
        mov cx, 9
wait:   hlt                     # until the timer's interrupt
        dec cx
        jnz wait
        mov al, 0x2e
        out dx, al
        jmp ticks
"""
"""Prints the disk's second sector, then a dot every half second."""


class Monitor:
    """QMP over a socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        wait_until(path.exists)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._lines.readline()
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments: Any) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            answer = json.loads(self._lines.readline())
            if "return" in answer or "error" in answer:
                return answer.get("return", answer)


class Guest:
    """A QEMU under ``casemate kvm``: its serial line, its monitor, and what casemate said."""

    def __init__(self, folder: Path, options: tuple[str, ...], arguments: tuple[str, ...]) -> None:
        self._serial, self._errors = folder / "serial", folder / "errors"
        monitor = folder / "monitor"
        line = [
            *kvm_command("--json", *options),
            *("qemu-system-x86_64", "-accel", "kvm", "-nodefaults", "-display", "none", "-net", "none"),
            *("-serial", f"file:{self._serial}", "-qmp", f"unix:{monitor},server=on,wait=off"),
            *arguments,
        ]
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stderr=errors)
        self._path = monitor

    def monitor(self) -> Monitor:
        return Monitor(self._path)

    def serial(self) -> str:
        return self._serial.read_text("latin-1") if self._serial.exists() else ""

    def wait_for(self, text: str, times: int = 1) -> None:
        def is_there() -> bool:
            return self.serial().count(text) >= times or self.process.poll() is not None

        wait_until(is_there)
        assert self.serial().count(text) >= times, self.errors()[-2000:] + self.serial()[-500:]

    def errors(self) -> str:
        return self._errors.read_text("utf-8")

    def summary(self) -> dict[str, Any]:
        assert self.process.wait(LIMIT) == 0, self.errors()
        found: dict[str, Any] = json.loads(self.errors()[self.errors().index("\n{") :])
        return found


def wait_until(condition: Callable[[], bool]) -> None:
    """Fails the test if it takes too long."""
    # A guest's progress can only be polled: neither QEMU nor the file of its serial line says when there is more.
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "the guest hangs"
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(["sleep", "0.1"], check=True)


@contextmanager
def guest(folder: Path, *arguments: str, options: tuple[str, ...] = ()) -> Iterator[Guest]:
    """A guest that is gone at the end."""
    found = Guest(folder, options, arguments)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.terminate()
            found.process.wait(LIMIT)


def flash(folder: Path, code: str, variables: str) -> list[str]:
    """OVMF in two flash units, the variables a copy."""
    store = folder / "vars.fd"
    shutil.copy(require_image(variables, "bookworm"), store)
    unit = "if=pflash,format=raw,unit"
    image = require_image(code, "bookworm")
    return ["-drive", f"{unit}=0,readonly=on,file={image}", "-drive", f"{unit}=1,file={store}"]


def bootable_disk(folder: Path) -> Path:
    """A disk whose first sector prints the second."""
    code = assemble(BOOT_SECTOR, 16, origin=0x7C00)
    sectors = code.ljust(510, b"\0") + b"\x55\xaa" + TEXT.encode() + b"\0"
    path = folder / "disk.img"
    path.write_bytes(sectors.ljust(1 << 20, b"\0"))
    return path


def disk(path: Path) -> tuple[str, str]:
    """QEMU's option for it, on virtio."""
    return "-drive", f"file={path},if=virtio,format=raw"
