"""The options of ``casemate boot`` (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.cli.confidential_arguments import GUEST, KERNEL, SNP
from casemate.cli.options import Option, add_options, file_path, integer, seconds

if TYPE_CHECKING:
    from casemate.cli.power_cuts import CutRequest

_SUFFIXES = {"": 20, "k": 10, "m": 20, "g": 30}


def size(text: str) -> int:
    """Bytes, from words as 256M or 2G. Raises argparse.ArgumentTypeError."""
    digits, suffix = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if not digits.isdecimal() or suffix not in _SUFFIXES:
        raise ArgumentTypeError(f"{text!r} is no size; write 256M or 2G")
    return int(digits) << _SUFFIXES[suffix]


def _fw_cfg_file(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise ArgumentTypeError(f"{text!r} is no NAME=FILE")
    return name, file_path(path)


def _cut_request(text: str) -> CutRequest:
    from casemate.cli.power_cuts import cut_request

    return cut_request(text)


def _report_file(text: str) -> Path:
    from casemate.cli.boot_report import report_file

    return report_file(text)


_FIRMWARE = (
    Option("--code", "F", "flash unit 0, opened read-only", type=file_path),
    Option("--vars", "F", "flash unit 1, the variable store; written to", type=file_path),
    Option("--vars-template", "F", "what a new variable store is copied from", type=file_path),
    Option(
        "--vars-sync",
        choices=("always", "idle", "exit"),
        default="exit",
        help="when variables go to the disk: after each flash command, when the guest pauses, at the end (%(default)s)",
    ),
    Option("--bios", "F", "one image below 4 GiB instead of flash"),
    Option("--name", "NAME", "guest whose kept variables to use (%(default)s)", default="default"),
)
_MACHINE = (
    Option(
        "--host",
        "HOST",
        "what runs the guest: auto, kvm, model, or model:ERA for the kernel of an era as linux-6.18"
        " (%(default)s: KVM if it runs supervisor code at speed, else the model)",
        default="auto",
    ),
    Option("--machine", choices=("q35", "pc", "bare"), default="q35", help="board (%(default)s)"),
    Option("--memory", "SIZE", "RAM, as 256M or 2G (256M)", type=size, default=256 << 20),
    Option("--cpus", "N", "vCPUs; more than one on KVM only (%(default)s)", type=integer, default=1),
    Option(
        "--protection",
        choices=("auto", "slot", "vma", "view", "uffd"),
        default="auto",
        help="write protection of flash: read-only slot, mprotect of the host mapping, read-only view, or userfaultfd"
        " (%(default)s)",
    ),
    Option(
        "--on-write",
        choices=("kill", "drop", "allow-once"),
        help="what a store to protected firmware does: end the run, nothing, or be made, the first one"
        " (default: what the device does with it, or kill)",
    ),
    Option(
        "--fw-cfg",
        "NAME=FILE",
        "offer FILE to the guest through fw_cfg, as opt/org.example/name (repeatable)",
        type=_fw_cfg_file,
        repeatable=True,
    ),
    Option("--public-api", help="keep the modelled CPU to Unicorn's public interface"),
)
_CONSOLE = (
    Option("--serial", "WHERE", "stdio (default), none, file:PATH, pty, or unix:PATH"),
    Option("--debugcon", "F", "write debug output (port 0x402) to a file", type=file_path),
    Option("--type", "TEXT", "type TEXT at a prompt (repeatable)", repeatable=True),
    Option("--prompt", "PROMPT", "what a prompt looks like (%(default)r)", default="Shell> "),
    Option("--until", "TEXT", "end when the guest prints TEXT"),
    Option("--timeout", "S", "end after S seconds", type=seconds),
    Option(
        "--watchdog",
        "S",
        "end as no-progress after S seconds of processor time without any access to a device",
        type=seconds,
    ),
    Option(
        "--cut-power-at",
        "N",
        "fail the power at flash command N, or random:SEED; all or all:COUNT judges many cuts of one boot",
        type=_cut_request,
    ),
)
_QMP = (
    Option("--qmp", "unix:PATH", "serve QEMU's machine protocol on a socket (docs/guide/qmp.md)"),
    Option(
        "--paused", help="wait for cont before the guest runs, or its SEV launch is finished; as QEMU's -S"
    ),
)
_QEMU = Option("qemu", "-- QEMU OPTION", "the guest in QEMU's spelling")
_OUTPUT = (
    Option(
        "--report",
        "F",
        "write what happened to F.html, one page to keep or attach, or to F.json (repeatable)",
        type=_report_file,
        repeatable=True,
    ),
    Option("--json", help="one JSON document on standard output"),
    Option("--verbose", short="-v", help="rejected protections, unclaimed accesses, ..."),
)
OPTIONS = (*_FIRMWARE, *_MACHINE, *GUEST, *SNP, *KERNEL, *_CONSOLE, *_QMP, _QEMU, *_OUTPUT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``OPTIONS`` in their groups."""
    firmware = "firmware (without any: the newest installed pair)"
    add_options(parser.add_argument_group(firmware), _FIRMWARE)
    add_options(parser.add_argument_group("machine"), _MACHINE)
    add_options(parser.add_argument_group("confidential guest"), GUEST)
    add_options(parser.add_argument_group("snp guest"), SNP)
    add_options(parser.add_argument_group("direct kernel boot"), KERNEL)
    add_options(parser.add_argument_group("console"), _CONSOLE)
    add_options(parser.add_argument_group("qmp"), _QMP)
    add_options(parser, (_QEMU,))
    add_options(parser.add_argument_group("output"), _OUTPUT)
