"""Programs on KVM's interface, compiled here, under ``casemate kvm`` (gcc, Linux linux/kvm.h)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate import native

Vmm = Callable[..., "subprocess.CompletedProcess[str]"]
HERE = Path(__file__).parents[1] / "userkvm"


def kvm_command(*options: str, command: str = "kvm") -> list[str]:
    """``casemate kvm``, or another command that runs VMMs, up to the VMM's own line."""
    return [sys.executable, "-m", "casemate", command, *options, "--"]


@pytest.fixture(scope="session")
def run_vmm(tmp_path_factory: pytest.TempPathFactory) -> Vmm:
    """Compiles a program of this folder and runs it with the modelled KVM."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    if not native.KVM.exists():
        pytest.skip("casemate's library for other VMMs was not built")
    folder = tmp_path_factory.mktemp("vmm")

    def run(
        name: str, *arguments: str, options: tuple[str, ...] = (), command: str = "kvm"
    ) -> subprocess.CompletedProcess[str]:
        program = folder / name
        if not program.exists():
            source = HERE / f"{name}.c"
            subprocess.run([compiler, "-D_GNU_SOURCE", "-O1", "-pthread", "-o", program, source], check=True)
        line = [*kvm_command(*options, command=command), str(program), *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    return run


def summary_of(errors: str) -> dict[str, object]:
    """The JSON document in what ``casemate kvm --json`` wrote to standard error."""
    found: dict[str, object] = json.loads(errors[errors.index("\n{") :])
    return found
