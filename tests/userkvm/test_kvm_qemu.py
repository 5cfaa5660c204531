"""An unmodified QEMU on the modelled KVM (QEMU's own -accel kvm, qmp-spec)."""

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

import pytest
from support.firmware_images import require_image, require_kernel
from support.vmm_programs import kvm_command

from casemate import native

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = [
    pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed"),
    pytest.mark.skipif(not native.KVM.exists(), reason="casemate's library for other VMMs was not built"),
]
LIMIT = 240
"""Seconds after which a guest is taken to hang."""


class Monitor:
    """QMP over a socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        _until(path.exists)
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

        _until(is_there)
        assert self.serial().count(text) >= times, self.errors()[-2000:] + self.serial()[-500:]

    def errors(self) -> str:
        return self._errors.read_text("utf-8")

    def summary(self) -> dict[str, Any]:
        assert self.process.wait(LIMIT) == 0, self.errors()
        found: dict[str, Any] = json.loads(self.errors()[self.errors().index("\n{") :])
        return found


def _until(condition: Callable[[], bool]) -> None:
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


def test_ovmf_comes_to_its_shell_and_obeys_the_monitor(tmp_path: Path) -> None:
    firmware = flash(tmp_path, "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")
    with guest(tmp_path, "-M", "q35", "-m", "256", *firmware) as ovmf:
        monitor = ovmf.monitor()
        ovmf.wait_for("BdsDxe: loading")
        assert monitor.call("stop") == {}
        assert monitor.call("query-status")["running"] is False
        assert monitor.call("cont") == {}
        ovmf.wait_for("Shell>")
        assert monitor.call("system_reset") == {}
        ovmf.wait_for("BdsDxe: loading", times=2)
        monitor.call("quit")
        summary = ovmf.summary()
    (vm,) = summary["vms"]
    assert (vm["type"], vm["guest"], vm["violations"]) == ("KVM_X86_DEFAULT_VM", "plain", [])
    assert vm["exits"]["KVM_EXIT_IO"] > 10_000


def test_linux_boots_behind_seabios_as_far_as_without_a_disk(tmp_path: Path) -> None:
    kernel = require_kernel("bookworm")
    command = "console=ttyS0 panic=-1 quiet"
    with guest(
        tmp_path, "-M", "q35", "-m", "512", "-no-reboot", "-kernel", str(kernel), "-append", command
    ) as linux:
        linux.wait_for("VFS: Unable to mount root fs")
        linux.summary()


@pytest.mark.parametrize("policy", [0x1, 0x5])
def test_digest_of_a_launch_by_qemu_is_the_one_that_measure_predicts(tmp_path: Path, policy: int) -> None:
    firmware = flash(tmp_path, "OVMF_CODE.fd", "OVMF_VARS.fd")
    sev = f"sev-guest,id=sev0,policy={policy:#x},cbitpos=39,reduced-phys-bits=1"
    machine = "pc,confidential-guest-support=sev0"
    with guest(tmp_path, "-M", machine, "-cpu", "EPYC", "-m", "256", "-S", "-object", sev, *firmware) as qemu:
        monitor = qemu.monitor()
        assert monitor.call("query-sev")["state"] in ("launch-secret", "running")
        monitor.call("quit")
        (vm,) = qemu.summary()["vms"]
    kind = "sev-es" if policy & 4 else "sev"
    assert vm["guest"] == kind
    image = require_image("OVMF_CODE.fd", "bookworm")
    mode = {"sev": "sev", "sev-es": "seves"}[kind]
    command = [*kvm_command()[:3], "measure", "--mode", mode, "--ovmf", str(image), "--output-format", "hex"]
    command += ["--init", "legacy", "--vcpus", "1", "--vcpu-type", "EPYC"] if mode == "seves" else []
    predicted = subprocess.run(command, capture_output=True, text=True, check=True)
    assert vm["digest"] == predicted.stdout.strip()


def test_planned_failure_of_a_launch_command_is_what_qemu_reports(tmp_path: Path) -> None:
    firmware = flash(tmp_path, "OVMF_CODE.fd", "OVMF_VARS.fd")
    sev = "sev-guest,id=sev0,policy=0x5,cbitpos=39,reduced-phys-bits=1"
    machine = ("-M", "pc,confidential-guest-support=sev0", "-cpu", "EPYC", "-object", sev)
    rule = "KVM_SEV_LAUNCH_UPDATE_DATA:1=fw:0x0b"
    with guest(tmp_path, *machine, "-m", "256", *firmware, options=("--fault", rule)) as qemu:
        assert qemu.process.wait(LIMIT) == 1
    assert "fw_error=11" in qemu.errors()
