"""``casemate kvm``: runs another VMM, whose KVM is the modelled host (docs/guide/kvm.md)."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from casemate import native
from casemate.abi.kernel_eras import ERAS, NEWEST, find_era
from casemate.errors import SpecError, UnsupportedError
from casemate.userkvm.faults import parse_fault
from casemate.userkvm.library import SET_STACK
from casemate.userkvm.options import OPTIONS, Options
from casemate.userkvm.report import to_html, to_text

EPILOG = """\
examples:
  casemate kvm -- qemu-system-x86_64 -accel kvm -M q35 -m 256 -display none -serial stdio -bios OVMF.fd
      QEMU with KVM, on a computer that has none
  casemate kvm --era linux-6.10 --log kvm.log -- qemu-system-x86_64 -accel kvm ...
      as under that kernel, and every ioctl in a file
  casemate kvm --fault KVM_CREATE_VCPU:1=ENOMEM -- ./my-vmm
      see what a VMM does when a call fails
  casemate kvm --wrapper wrapped --era linux-6.18 -- /usr/bin/qemu-system-x86_64
      makes wrapped/qemu-system-x86_64, to be named in libvirt's <emulator>

Everything that the guest sees of KVM is modelled. A summary follows at the end, or on SIGUSR1.
exit code: the command's own, 128 and the signal if one ended it; 2 usage, 4 bad input, 5 this host cannot
"""

_START = (
    "import ctypes, json, os, sys; sys.path[:] = json.loads(os.environ['CASEMATE_KVM_PATH']); "
    "ctypes.CDLL(os.environ['CASEMATE_KVM_ENGINE'], mode=os.RTLD_NOW | os.RTLD_DEEPBIND); "
    "from casemate.userkvm import server; server.start()"
)
"""A monitor may export functions with the names of the engine's, which must find its own: so it is loaded first."""
_CHECKS_STACKS = (3, 14)
"""The first Python that looks how much of a stack is left."""
_NOT_FOUND, _SIGNALLED = 127, 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare options."""
    parser.usage = "casemate kvm [options] -- COMMAND [ARGUMENT ...]"
    parser.add_argument("--era", default=NEWEST, choices=ERAS, help=f"the modelled kernel (default {NEWEST})")
    parser.add_argument(
        "--log", metavar="FILE", type=Path, help="every ioctl, as JSON lines if it ends in .jsonl"
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="the summary as HTML")
    parser.add_argument("--json", action="store_true", help="the summary as JSON on standard error")
    parser.add_argument("--quiet", action="store_true", help="no summary")
    parser.add_argument(
        "--fault", metavar="RULE", action="append", default=[],
        help="KVM_...:N=ERRNO lets the N-th such call fail; KVM_SEV_...:N=fw:STATUS",
    )  # fmt: skip
    parser.add_argument(
        "--platform", metavar="DIR", type=Path,
        help="keep the secure processor's keys there, and the certificates of an SNP guest's reports",
    )  # fmt: skip
    parser.add_argument("--no-sev", action="store_true", help="a host without /dev/sev")
    parser.add_argument(
        "--wrapper", metavar="DIR", type=Path, help="make an executable that does this, and end"
    )
    parser.add_argument("vmm", metavar="COMMAND", nargs="+", help="the VMM and its arguments, behind --")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    for rule in args.fault:
        parse_fault(rule)
    if args.wrapper is not None:
        return _write_wrapper(args, _program(args.vmm[0]))
    if args.log is not None:
        _make_empty(args.log)
    options = Options(
        args.era,
        tuple(args.fault),
        None if args.log is None else str(args.log.resolve()),
        has_sev=not args.no_sev,
        platform=None if args.platform is None else str(_made(args.platform)),
    )
    if args.quiet and args.report is None:
        _become(args.vmm, options)
    code, summaries = run_vmm(args.vmm, options, lambda summary: _print(args, summary))
    _report(args, summaries)
    return code


def run_vmm(
    command: list[str], options: Options, show: Callable[[dict[str, Any]], None]
) -> tuple[int, list[dict[str, Any]]]:
    """Run a VMM on the modelled KVM: its exit code, and the summaries of its processes that opened /dev/kvm.

    ``show`` gets summaries that SIGUSR1 asks for. Raises SpecError and UnsupportedError.
    """
    with tempfile.TemporaryDirectory(prefix="casemate-kvm-") as folder:
        collector = _Collector(Path(folder, "summary"))
        program, environment = _prepare(command, options._replace(socket=str(collector.path)))
        code = _Child([str(program), *command[1:]], environment, collector, show).wait()
        collector.close()
    return code, collector.last()


def _become(command: list[str], options: Options) -> NoReturn:
    """Where nobody waits for a summary the command takes this process, with its descriptors and its number."""
    program, environment = _prepare(command, options)
    try:
        os.execve(program, [str(program), *command[1:]], environment)
    except OSError as error:
        raise SpecError(f"{program} cannot be started: {error.strerror}", "name another command") from None


def _prepare(command: list[str], options: Options) -> tuple[Path, dict[str, str]]:
    """The program and its environment. Raises SpecError and UnsupportedError."""
    program = _program(command[0])
    _refuse_sandbox(command)
    environment = os.environ | vmm_environment(options)
    text = f"casemate: /dev/kvm is modelled ({options.era}); nothing here is evidence about hardware"
    print(text, file=sys.stderr, flush=True)
    return program, environment


class _Collector:
    """Takes summaries from the command and its children."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._summaries: dict[int, dict[str, Any]] = {}
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._arrived = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._read, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _read(self, connection: socket.socket) -> None:
        with connection, connection.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                summary = json.loads(line)
                with self._arrived:
                    self._summaries[summary["pid"]] = summary
                    self._arrived.notify_all()

    def ask(self, seconds: float = 2.0) -> list[dict[str, Any]]:
        """Summaries as of now."""
        with self._arrived:
            before = dict(self._summaries)
        for connection in self._connections:
            try:
                connection.send(b"?")
            except OSError:
                continue
        with self._arrived:
            self._arrived.wait_for(lambda: self._summaries != before, seconds)
            return list(self._summaries.values())

    def last(self) -> list[dict[str, Any]]:
        """What came."""
        return list(self._summaries.values())

    def close(self) -> None:
        """The command ended: take what is still on its way."""
        self._listener.close()
        for thread in self._threads:
            thread.join(1.0)


class _Child:
    """The command; signals that end or ask ``casemate kvm`` are its."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        collector: _Collector,
        show: Callable[[dict[str, Any]], None],
    ) -> None:
        self._collector = collector
        self._show_summary = show
        try:
            self._process = subprocess.Popen(command, env=environment, close_fds=False)
        except OSError as error:
            raise SpecError(
                f"{command[0]} cannot be started: {error.strerror}", "name another command"
            ) from None

    def wait(self) -> int:
        """Its exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._forward)
        signal.signal(signal.SIGUSR1, self._show)
        code = self._process.wait()
        return code if code >= 0 else _SIGNALLED - code

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:  # the terminal sends that one to both
            self._process.send_signal(number)

    def _show(self, _number: int, _frame: FrameType | None) -> None:
        for summary in self._collector.ask():
            self._show_summary(summary)


def modelled_environment(era: str | None, faults: tuple[str, ...], *, has_sev: bool) -> dict[str, str]:
    """The same, of an era (the newest one), with faults. Raises SpecError for words that name none."""
    find_era(era or NEWEST)
    for rule in faults:
        parse_fault(rule)
    return vmm_environment(Options(era or NEWEST, faults, has_sev=has_sev))


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


def _program(name: str) -> Path:
    """A dynamically linked executable that may be preloaded. Raises SpecError, UnsupportedError."""
    found = shutil.which(name)
    if found is None:
        raise SpecError(f"there is no command {name!r}", "name a program on PATH, or by its path")
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


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(
            f"--platform {folder}: {error.strerror}", "name a folder that you may write"
        ) from None
    return folder.resolve()


def _make_empty(path: Path) -> None:
    try:
        path.write_text("")
    except OSError as error:
        raise SpecError(f"--log {path}: {error.strerror}", "name a file that you may write") from None


def _write_wrapper(args: argparse.Namespace, program: Path) -> int:
    line = [sys.executable, "-m", "casemate", "kvm", "--quiet", "--era", args.era]
    line += [word for rule in args.fault for word in ("--fault", rule)]
    line += [] if args.log is None else ["--log", str(args.log.resolve())]
    line += [] if args.platform is None else ["--platform", str(_made(args.platform))]
    line += ["--no-sev"] if args.no_sev else []
    target = args.wrapper / program.name
    try:
        args.wrapper.mkdir(parents=True, exist_ok=True)
        target.write_text(
            f'#!/bin/sh\n{_path_of_python()}exec {shlex.join([*line, "--", str(program)])} "$@"\n'
        )
        target.chmod(0o755)
    except OSError as error:
        raise SpecError(
            f"--wrapper {args.wrapper}: {error.strerror}", "name a folder that you may write"
        ) from None
    print(target)
    return 0


def _path_of_python() -> str:
    """Who starts the wrapper may keep the environment from it, as libvirt does."""
    path = os.environ.get("PYTHONPATH")
    return "" if path is None else f"export PYTHONPATH={shlex.quote(path)}\n"


def _report(args: argparse.Namespace, summaries: list[dict[str, Any]]) -> None:
    if args.report is not None:
        try:
            args.report.write_text(to_html(summaries), "utf-8")
        except OSError as error:
            raise SpecError(f"--report {args.report}: {error.strerror}", "name another file") from None
    if not summaries and not args.quiet:
        print("casemate: the command opened no /dev/kvm, or was killed: there is no summary", file=sys.stderr)
    for summary in summaries:
        if not args.quiet:
            _print(args, summary)


def _print(args: argparse.Namespace, summary: dict[str, Any]) -> None:
    text = json.dumps(summary, indent=2) if args.json else to_text(summary)
    print(text, file=sys.stderr, flush=True)
