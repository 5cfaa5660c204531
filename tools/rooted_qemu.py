"""One launch of QEMU in a root folder, on the modelled KVM (docs/guide/kvm.md, python -m tools.roots)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casemate import native
from tools.roots.make import cache_folder, is_made, root_folder
from tools.roots.recipes import RECIPES

CHECKOUT = Path(__file__).parents[1]
LIMIT = 240
"""Seconds after which a guest is taken to hang."""
RUN = "/casemate/run"
"""Where QEMU finds the files of its launch; ``vars.fd`` is among them."""
_AS_INIT = ("sh", "-c", '"$@"; exit $?', "sh")
"""Runs a command as a child of the root's first process, which timeout(1) of coreutils 9.10 does not want to be."""
_VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd"


class CannotError(Exception):
    """Why this host cannot launch it, and the remedy."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one launch did."""

    code: int
    errors: str
    serial: str
    vm: dict[str, Any] = field(default_factory=dict)
    """What ``casemate kvm --json`` says of the VM that was launched first; empty if none was."""
    launches: int = 1
    """VMs that were."""


def tree(root: str) -> Path:
    """The folder that the root's own / is."""
    return root_folder(RECIPES[root]) / "tree"


def python_of(root: str) -> str:
    """The version of the root's Python."""
    versions = [path.name[6:] for path in tree(root).glob("usr/lib/python3.*")]
    return max(versions, key=lambda version: [int(part) for part in version.split(".")])


def require(root: str = "trixie-full") -> Path:
    """The folder of casemate's dependencies for the root's Python, filled if need be. Raises CannotError."""
    if os.geteuid() != 0:
        raise CannotError("entering a root needs root")
    if not is_made(RECIPES[root]):
        raise CannotError(f"there is no root {root}: ./dev roots make {root}")
    if not native.KVM.exists():
        raise CannotError("casemate's library for other VMMs was not built: ./dev check")
    version = python_of(root)
    needed = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    mark = hashlib.sha256(repr(needed).encode()).hexdigest()[:16]
    folder = cache_folder().parent / "packages" / f"{version}-{mark}"
    if folder.exists():
        return folder
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as partial:
        target = Path(partial, "packages")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(target), "--only-binary=:all:"]
        made = subprocess.run(
            [*pip, "--python-version", version, *needed], capture_output=True, text=True, check=False
        )
        if made.returncode:
            cause = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CannotError(f"pip cannot fetch casemate's dependencies for Python {version}: {cause}")
        target.rename(folder)
    return folder


def launch(
    root: str,
    era: str,
    arguments: list[str],
    *,
    until: str,
    files: Mapping[str, Path | bytes] | None = None,
    limit: int = LIMIT,
    resets: int = 0,
) -> Outcome:
    """QEMU with ``arguments``, ended once its serial line says ``until``; before that it is reset so often.

    ``files`` are those that the arguments name below RUN, by name, beside a copy of the
    root's empty variables.
    A guest that hangs is killed after ``limit`` seconds, and its exit code is 137. Raises CannotError.
    """
    packages = require(root)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copyfile(tree(root) / _VARIABLES[1:], folder / "vars.fd")
        for file, content in (files or {}).items():
            if isinstance(content, bytes):
                (folder / file).write_bytes(content)
            else:
                shutil.copyfile(content, folder / file)
        line = [
            *(sys.executable, "-m", "tools.roots", "run"),
            *("--bind", f"{CHECKOUT / 'src'}:/casemate/src", "--bind", f"{packages}:/casemate/packages"),
            *("--bind", f"{folder}:{RUN}", root, "--"),
            *("env", "PYTHONPATH=/casemate/src:/casemate/packages", "PYTHONDONTWRITEBYTECODE=1"),
            *_AS_INIT,
            *("timeout", "-s", "KILL", str(limit), "python3", "-m", "casemate", "kvm", "--json"),
            *("--era", era, "--", "qemu-system-x86_64", "-accel", "kvm"),
            *("-nodefaults", "-display", "none", "-net", "none", "-no-reboot"),
            *("-serial", f"file:{RUN}/serial", "-qmp", f"unix:{RUN}/monitor,server=on,wait=off"),
            *arguments,
        ]
        errors = folder / "errors"
        with (
            errors.open("w") as file_of_errors,
            subprocess.Popen(
                line,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file_of_errors,
            ) as process,
        ):
            for number in range(resets + 1):
                _do_when_said(
                    process, folder, until, number + 1, "system_reset" if number < resets else "quit"
                )
        return _outcome(process.returncode, errors.read_text("utf-8", "replace"), _serial(folder))


def _serial(folder: Path) -> str:
    path = folder / "serial"
    return path.read_text("latin-1") if path.exists() else ""


def _do_when_said(
    process: subprocess.Popen[bytes], folder: Path, until: str, times: int, command: str
) -> None:
    while _serial(folder).count(until) < times:
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
        return
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX) as monitor,
        monitor.makefile("rw", encoding="utf-8") as lines,
    ):
        monitor.connect(str(folder / "monitor"))
        for each in ("qmp_capabilities", command):
            lines.readline()
            lines.write(json.dumps({"execute": each}))
            lines.flush()
        lines.readline()


def _outcome(code: int, errors: str, serial: str) -> Outcome:
    start = errors.find("\n{")
    vms = json.JSONDecoder().raw_decode(errors[start + 1 :])[0]["vms"] if start >= 0 else []
    # QEMU makes others to ask them for their capabilities.
    launched = [vm for vm in vms if vm["digest"]]
    return Outcome(code, errors, serial, launched[0] if launched else {}, len(launched))
