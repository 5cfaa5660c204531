"""What makes the KVM of a program the modelled one: its environment (docs/design/user-space-kvm.md)."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from casemate import native
from casemate.abi.kernel_eras import NEWEST, find_era
from casemate.errors import SpecError, UnsupportedError
from casemate.userkvm.options import OPTIONS, SET_STACK, Options

_START = (
    "import gc; gc.disable(); import ctypes, json, os, sys; sys.path[:] = json.loads(os.environ['CASEMATE_KVM_PATH']); "
    "ctypes.CDLL(os.environ['CASEMATE_KVM_ENGINE'], mode=os.RTLD_NOW | os.RTLD_DEEPBIND); "
    "from casemate.userkvm import server; gc.freeze(); gc.enable(); server.start()"
)
"""A monitor may export functions with the names of the engine's, which must find its own: so it is loaded first.
What is loaded stays: nobody looks there for garbage, neither now nor when a VM is given back."""
_CHECKS_STACKS = (3, 14)
"""The first Python that looks how much of a stack is left."""


def prepare(command: list[str], options: Options) -> tuple[Path, dict[str, str]]:
    """The program and its environment. Raises SpecError and UnsupportedError."""
    program = find_program(command[0])
    _refuse_sandbox(command)
    environment = os.environ | vmm_environment(options)
    text = f"casemate: /dev/kvm is modelled ({options.era}); nothing here is evidence about hardware"
    print(text, file=sys.stderr, flush=True)
    return program, environment


def modelled_environment(era: str | None, faults: tuple[str, ...], *, has_sev: bool) -> dict[str, str]:
    """The same, of an era (the newest one), with faults. Raises SpecError for words that name none."""
    find_era(era or NEWEST)
    validate_faults(faults)
    return vmm_environment(Options(era or NEWEST, faults, has_sev=has_sev))


def validate_faults(rules: Sequence[str]) -> None:
    """Refuse rules that name no call or no error. Raises SpecError."""
    if not rules:
        return
    from casemate.userkvm.faults import parse_fault  # knows all calls

    for rule in rules:
        parse_fault(rule)


def vmm_environment(options: Options) -> dict[str, str]:
    """What a program's environment must have for its KVM to be modelled. Raises UnsupportedError."""
    python = _shared_python()
    try:
        engine = native.engine()
    except ModuleNotFoundError:
        raise UnsupportedError(
            "the package unicorn is not installed", "install casemate with its dependencies"
        ) from None
    if not engine.exists() or not native.KVM.exists():
        raise UnsupportedError(
            "casemate's library for other VMMs was not built", "install casemate's wheel for Linux on x86-64"
        )
    preload = [str(native.KVM), *filter(None, [os.environ.get("LD_PRELOAD")])]
    return {
        "LD_PRELOAD": ":".join(preload),
        "CASEMATE_KVM_PYTHON": str(python),
        "CASEMATE_KVM_HOME": sys.base_prefix,
        "CASEMATE_KVM_START": _START,
        "CASEMATE_KVM_PATH": json.dumps([path for path in sys.path if path]),
        "CASEMATE_KVM_ENGINE": str(engine),
        OPTIONS: json.dumps(options._asdict()),
    } | ({"CASEMATE_KVM_SEV": "1"} if options.has_sev else {})


def _shared_python() -> Path:
    """This Python as a library. Raises UnsupportedError."""
    version = sys.version_info
    if version >= _CHECKS_STACKS and not hasattr(ctypes.pythonapi, SET_STACK):
        raise UnsupportedError(
            f"this Python {version[0]}.{version[1]} cannot be told the stack of a vCPU (it has no {SET_STACK})",
            "run casemate with Python 3.11 to 3.13, or with the newest 3.14",
        )
    name = sysconfig.get_config_var("INSTSONAME") or f"libpython{version[0]}.{version[1]}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    folders = [sysconfig.get_config_var("LIBDIR") or "", f"{sys.base_prefix}/lib", f"/usr/lib/{multiarch}"]
    shared = name if ".so" in name else f"libpython{version[0]}.{version[1]}.so.1.0"
    for folder in folders:
        if folder and Path(folder, shared).exists():
            return Path(folder, shared)
    raise UnsupportedError(
        f"this Python has no shared library ({shared}), which the VMM would load",
        f"install it (Debian: libpython{version[0]}.{version[1]}), or use another Python",
    )


def find_program(name: str) -> Path:
    """A dynamically linked executable that may be preloaded. Raises SpecError, UnsupportedError."""
    found = shutil.which(name)
    if found is None or not os.path.isfile(found):  # a FIFO would be waited for
        raise _no_program(name)
    path = Path(found).absolute()
    mode = path.stat().st_mode
    if mode & 0o6000 and path.stat().st_uid != os.getuid():
        raise UnsupportedError(f"{path} is setuid or setgid, so nothing can be preloaded", "run a copy of it")
    head = path.open("rb").read(1 << 16)
    if head.startswith(b"\x7fELF") and not _has_interpreter(head):
        raise UnsupportedError(
            f"{path} is statically linked, so nothing can be preloaded", "use a dynamically linked build"
        )
    return path


def _no_program(name: str) -> SpecError:
    """Why a name is none of a program: what PATH is not searched for is looked at itself."""
    is_path = os.sep in name
    if is_path and os.path.isdir(name):
        return SpecError(f"the command {name} is a folder", "name the program in it")
    if is_path and os.path.isfile(name):
        return SpecError(
            f"the command {name} is not executable",
            f"use chmod +x {shlex.quote(name)}, or name another program",
        )
    return SpecError(f"there is no command {name!r}", "name a program on PATH, or by its path")


def _has_interpreter(head: bytes) -> bool:
    at, size, count = (
        int.from_bytes(head[start:end], "little") for start, end in ((32, 40), (54, 56), (56, 58))
    )
    kinds = (int.from_bytes(head[at + size * n : at + size * n + 4], "little") for n in range(count))
    return 3 in kinds  # PT_INTERP


def _refuse_sandbox(command: list[str]) -> None:
    for option, value in pairwise(command):
        if option in ("-sandbox", "--sandbox") and value.split(",")[0] in ("on", "enable=on"):
            raise UnsupportedError(
                "QEMU's -sandbox on forbids what the model needs (threads, mappings, files)",
                "use -sandbox off, and in libvirt's qemu.conf seccomp_sandbox = 0",
            )
