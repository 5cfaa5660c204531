"""What a plain boot on KVM loads before its guest runs: nothing of what it does not need (decision 6)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from casemate.errors import UnsupportedError
from casemate.guests.entry import make_image

LEAVE = make_image(bytes.fromhex("b000 e6f4 ebfe"))  # mov al, 0; out 0xf4, al; jmp $
PARTS = ("casemate.cli.boot", "casemate.machine.boot", "casemate.host.kvm.hypervisor")
"""What a boot imports as soon as it runs, so that this can be said without KVM, too."""
HEAVY = {"cryptography", "iced_x86", "jinja2", "rich", "unicorn"}
OTHER_HOST = "casemate.host.model"
OTHERS_ALONE = (
    "casemate.advise",
    "casemate.confidential",
    "casemate.digest",
    "casemate.devices.flash.cfi",
    "casemate.devices.ioapic",
    "casemate.evidence",
    "casemate.host.kvm.sev",
    "casemate.linux.direct_boot",
    "casemate.qemu",
    "casemate.qmp",
    "dataclasses",
    "hashlib",
    "inspect",
    "json",
    "lzma",
    "socket",
)
"""What confidential guests, flash, kernels, the model, QEMU's command line and documents need, and their making."""
TEXT_ANNOTATIONS = """
import sys, typing
for module in [each for name, each in sys.modules.items() if name.startswith("casemate.")]:
    for made in vars(module).values():
        if isinstance(made, type) and issubclass(made, tuple) and made.__module__ == module.__name__:
            if any(isinstance(each, typing.ForwardRef) for each in made.__annotations__.values()):
                print(f"{module.__name__}.{made.__name__}")
"""


def loaded(code: str, *words: str) -> set[str]:
    told = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
    command = [sys.executable, "-c", told + code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == UnsupportedError.exit_code:
        pytest.skip(done.stderr.splitlines()[-2])
    assert done.returncode == 0, done.stderr[-500:]
    return set(done.stderr.splitlines()[-1].split())


def assert_light(modules: set[str]) -> None:
    assert set(PARTS) <= modules
    assert not modules & HEAVY
    assert not {name for name in modules if name.startswith(OTHER_HOST)}


def test_parts_of_a_plain_boot_load_nothing_heavy() -> None:
    modules = loaded("; ".join(f"import {part}" for part in PARTS))
    assert_light(modules)
    assert not [name for name in modules if any(f"{name}.".startswith(f"{each}.") for each in OTHERS_ALONE)]


def test_plain_boot_on_kvm_loads_nothing_heavy(tmp_path: Path) -> None:
    # In the sandbox it loads what it could not load later.
    (tmp_path / "leave.bin").write_bytes(LEAVE)
    line = ["boot", "--host", "kvm", "--no-sandbox", "--memory", "16M", "--bios", str(tmp_path / "leave.bin")]
    modules = loaded("from casemate.cli import start; start()", *line, "--serial", "none")
    assert_light(modules)
    assert not modules & {"hashlib", "json", "lzma"}


@pytest.mark.parametrize("start", [", ".join(PARTS), "casemate.userkvm.server", "casemate.cli.kvm"])
def test_named_tuples_of_a_start_have_no_annotations_to_compile(start: str) -> None:
    command = [sys.executable, "-c", f"import {start}\n{TEXT_ANNOTATIONS}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
