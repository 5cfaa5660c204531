"""``casemate kvm``: runs another VMM, whose KVM is the modelled host (docs/guide/kvm.md)."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from casemate.abi.kernel_eras import ERAS, NEWEST
from casemate.cli.vmm_environment import find_program, prepare, validate_faults
from casemate.errors import SpecError
from casemate.userkvm.options import Options

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
    validate_faults(args.fault)
    if args.wrapper is not None:
        return _write_wrapper(args, find_program(args.vmm[0]))
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
    from casemate.cli.vmm_child import run_and_report  # loads sockets and threads

    return run_and_report(args, options)


def _become(command: list[str], options: Options) -> NoReturn:
    """Where nobody waits for a summary the command takes this process, with its descriptors and its number."""
    program, environment = prepare(command, options)
    try:
        os.execve(program, [str(program), *command[1:]], environment)
    except OSError as error:
        raise SpecError(f"{program} cannot be started: {error.strerror}", "name another command") from None


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
