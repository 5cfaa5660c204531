"""The options of ``casemate boot`` (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.cli.boot_report import report_file
from casemate.cli.confidential_arguments import (
    add_confidential_arguments,
    add_guest_argument,
    add_kernel_arguments,
    add_snp_arguments,
)
from casemate.cli.options import integer, seconds
from casemate.cli.parser import MORE, BriefHelpFormatter, HelpAll

if TYPE_CHECKING:
    from casemate.abi.x86.cpu_models import CpuChoice
    from casemate.cli.power_cuts import CutRequest

DEFAULT_WATCHDOG = 60.0
"""Seconds of processor time that a guest of which something is expected may spend without a device."""
_LEAST_PLAIN_MIB = 16
_SUFFIXES = {"": 20, "k": 10, "m": 20, "g": 30}


_FEW_EXAMPLES = """\
examples:
  casemate boot --until 'Shell> '                    installed OVMF to its shell
  casemate boot --code CODE.fd --vars VARS.fd        your files; at a terminal, Ctrl-A X leaves
  casemate boot --guest sev-es --feature debug-swap --until 'Shell> '
  casemate boot --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --timeout 60
"""


def size(text: str) -> int:
    """Bytes, from words as 256M or 2G; a plain number is in MiB, as for QEMU. Raises argparse.ArgumentTypeError."""
    digits, suffix = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if not digits.isdecimal() or suffix not in _SUFFIXES:
        raise ArgumentTypeError(f"{text!r} is no size; write 256M or 2G")
    if not suffix and int(digits) < _LEAST_PLAIN_MIB:
        raise ArgumentTypeError(f"{text!r} is ambiguous; write {text}M or {text}G")
    return int(digits) << _SUFFIXES[suffix]


def _fw_cfg_file(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise ArgumentTypeError(f"{text!r} is no NAME=FILE")
    return name, Path(path)


def _cpu_choice(text: str) -> CpuChoice:
    from casemate.cli.cpu_option import cpu_choice  # knows the modelled processor, which KVM does not need

    return cpu_choice(text)


def _cut_request(text: str) -> CutRequest:
    from casemate.cli.power_cuts import cut_request  # knows how boots after a cut are judged

    return cut_request(text)


def add_arguments(parser: argparse.ArgumentParser, examples: str) -> None:
    """Declare the options in their groups; those of groups that begin with ``MORE`` are for ``--help-all``."""
    parser.usage = "casemate boot [OPTION ...] [-- QEMU OPTION ...]"
    parser.formatter_class, parser.epilog = BriefHelpFormatter, _FEW_EXAMPLES
    parser.add_argument("--help-all", action=HelpAll, examples=examples, help="show all options and examples")
    _add_firmware(parser)
    _add_machine(parser)
    add_guest_argument(parser)
    add_kernel_arguments(parser)
    _add_console(parser)
    _add_output(parser)
    add_confidential_arguments(parser)
    add_snp_arguments(parser)
    qmp = parser.add_argument_group(f"{MORE}: QMP")
    qmp.add_argument(
        "--qmp", metavar="unix:PATH", help="serve QEMU's machine protocol on a socket (docs/guide/qmp.md)"
    )
    qmp.add_argument(
        "--paused",
        action="store_true",
        help="wait for cont before the guest runs, or its SEV launch is finished; as QEMU's -S",
    )
    _add_sandbox(parser)


def _add_sandbox(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group(f"{MORE}: process").add_argument(
        "--no-sandbox",
        dest="sandbox",
        action="store_false",
        help="keep what the process may do while the guest runs (docs/guide/sandbox.md)",
    )


def _add_firmware(parser: argparse.ArgumentParser) -> None:
    firmware = parser.add_argument_group("firmware (without any: the newest installed pair)")
    firmware.add_argument("--code", metavar="F", type=Path, help="flash unit 0, opened read-only")
    firmware.add_argument(
        "--vars", metavar="F", type=Path, help="flash unit 1, the variable store; written to"
    )
    firmware.add_argument("--bios", metavar="F", help="one image below 4 GiB instead of flash")
    more = parser.add_argument_group(f"{MORE}: firmware")
    more.add_argument(
        "--vars-template", metavar="F", type=Path, help="what a new variable store is copied from"
    )
    more.add_argument(
        "--vars-sync",
        choices=("always", "idle", "exit"),
        default="exit",
        help="when variables go to the disk: after each flash command, when the guest pauses, at the end (%(default)s)",
    )
    more.add_argument(
        "--name", metavar="NAME", default="default", help="guest whose kept variables to use (%(default)s)"
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--host", metavar="HOST", default="auto", help="auto, kvm, model, or model:ERA (%(default)s)"
    )
    machine.add_argument(
        "--machine", choices=("q35", "pc", "bare"), help="board (q35, or pc for firmware that needs it)"
    )
    machine.add_argument(
        "--memory", metavar="SIZE", type=size, default=256 << 20, help="RAM, as 256M or 2G (256M)"
    )
    machine.add_argument(
        "--cpus", metavar="N", type=integer, default=1, help="vCPUs; those of the model take turns (1)"
    )
    more = parser.add_argument_group(f"{MORE}: machine")
    more.add_argument(
        "--cpu",
        metavar="MODEL[,+F,-F]",
        type=_cpu_choice,
        help="processor of the modelled host, in QEMU's spelling; help lists them (max, of confidential guests"
        " EPYC-v4)",
    )
    more.add_argument(
        "--test-device",
        action="store_true",
        help="QEMU's pc-testdev and isa-debug-exit: VALUE written to port 0xf4 ends with exit code VALUE*2+1",
    )
    more.add_argument(
        "--protection",
        choices=("auto", "slot", "vma", "view", "uffd"),
        default="auto",
        help="write protection of flash: read-only slot, mprotect of the host mapping, read-only view, or userfaultfd"
        " (%(default)s)",
    )
    more.add_argument(
        "--on-write",
        choices=("kill", "drop", "allow-once"),
        help="what a write to protected firmware does: end the run, nothing, or be made, the first one"
        " (default: what the device does with it, or kill)",
    )
    more.add_argument(
        "--fw-cfg",
        metavar="NAME=FILE",
        type=_fw_cfg_file,
        action="append",
        default=[],
        help="offer FILE to the guest through fw_cfg, as opt/org.example/name (repeatable)",
    )


def _add_console(parser: argparse.ArgumentParser) -> None:
    console = parser.add_argument_group("console and end")
    console.add_argument("--until", metavar="TEXT", help="end when the guest prints TEXT")
    console.add_argument(
        "--type", metavar="TEXT", action="append", default=[], help="type TEXT at a prompt (repeatable)"
    )
    console.add_argument("--timeout", metavar="S", type=seconds, help="end after S seconds")
    console.add_argument(
        "--serial", metavar="WHERE", help="stdio (default), none, file:PATH, pty, or unix:PATH"
    )
    more = parser.add_argument_group(f"{MORE}: console and end")
    more.add_argument(
        "--prompt", metavar="PROMPT", default="Shell> ", help="what a prompt looks like (%(default)r)"
    )
    more.add_argument("--debugcon", metavar="F", type=Path, help="write debug output (port 0x402) to a file")
    more.add_argument(
        "--watchdog",
        metavar="S",
        type=seconds,
        help="end as no-progress after S seconds of processor time without any access to a device"
        f" ({DEFAULT_WATCHDOG:g} with --until or --type)",
    )
    more.add_argument(
        "--cut-power-at",
        metavar="N",
        type=_cut_request,
        help="fail the power at flash command N, or random:SEED; all or all:COUNT judges many cuts of one boot",
    )
    more.add_argument("qemu", nargs="*", metavar="-- QEMU OPTION", help="the guest in QEMU's spelling")


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--report",
        metavar="F",
        type=report_file,
        action="append",
        default=[],
        help="write what happened to F.html or F.json (repeatable)",
    )
    output.add_argument("--json", action="store_true", help="one JSON document on standard output")
    output.add_argument(
        "-v", "--verbose", action="store_true", help="rejected protections, unclaimed accesses, ..."
    )
