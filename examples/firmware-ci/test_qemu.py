"""QEMU as a VMM under test: its KVM is the model of an old and of a new kernel's (docs/guide/ci.md)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from casemate import find_firmware
from casemate.pytest_plugin import ModelledKvm

QEMU = shutil.which("qemu-system-x86_64")


@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
@pytest.mark.parametrize("era", ["linux-6.1", "linux-6.18"])
def test_qemu_boots_the_firmware(era: str, modelled_kvm: ModelledKvm, tmp_path: Path) -> None:
    firmware = find_firmware()
    log = tmp_path / "debug.log"
    line = [str(QEMU), "-accel", "kvm", "-nodefaults", "-display", "none", "-net", "none", "-m", "256"]
    line += [
        "-drive",
        f"if=pflash,format=raw,unit=0,readonly=on,file={firmware.code}",
        "-serial",
        f"file:{log}",
    ]
    with subprocess.Popen(line, env=modelled_kvm(era)) as qemu:
        try:
            while "Shell> " not in (log.read_text("latin-1") if log.exists() else ""):
                with pytest.raises(subprocess.TimeoutExpired):  # it runs on
                    qemu.wait(0.1)
        finally:
            qemu.kill()
