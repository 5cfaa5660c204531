"""The options of ``casemate boot`` (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
from pathlib import Path

from casemate.cli import confidential_options, power_cuts
from casemate.cli.boot_report import report_file
from casemate.cli.options import integer, seconds

_SUFFIXES = {"": 20, "k": 10, "m": 20, "g": 30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare options."""
    firmware = parser.add_argument_group("firmware (without any: the newest installed pair)")
    firmware.add_argument("--code", type=Path, metavar="F", help="flash unit 0, opened read-only")
    firmware.add_argument(
        "--vars", type=Path, metavar="F", help="flash unit 1, the variable store; written to"
    )
    firmware.add_argument(
        "--vars-template", type=Path, metavar="F", help="what a new variable store is copied from"
    )
    firmware.add_argument(
        "--vars-sync",
        choices=["always", "idle", "exit"],
        default="exit",
        help="when variables go to the disk: after each flash command, when the guest pauses, at the end (%(default)s)",
    )
    firmware.add_argument("--bios", type=Path, metavar="F", help="one image below 4 GiB instead of flash")
    firmware.add_argument("--name", default="default", help="guest whose kept variables to use (%(default)s)")
    guest = parser.add_argument_group("machine")
    guest.add_argument(
        "--host",
        default="auto",
        metavar="HOST",
        help="what runs the guest: auto, kvm, model, or model:ERA for the kernel of an era as linux-6.18"
        " (%(default)s: KVM if it runs supervisor code at speed, else the model)",
    )
    guest.add_argument("--machine", choices=["q35", "pc", "bare"], default="q35", help="board (%(default)s)")
    guest.add_argument(
        "--memory", type=size, default="256M", metavar="SIZE", help="RAM, as 256M or 2G (%(default)s)"
    )
    guest.add_argument(
        "--cpus", type=integer, default=1, metavar="N", help="vCPUs; more than one on KVM only (%(default)s)"
    )
    guest.add_argument(
        "--protection",
        choices=["auto", "slot", "vma", "view", "uffd"],
        default="auto",
        help="write protection of flash: read-only slot, mprotect of the host mapping, read-only view, or userfaultfd"
        " (%(default)s)",
    )
    guest.add_argument(
        "--on-write",
        choices=["kill", "drop", "allow-once"],
        help="what a store to protected firmware does: end the run, nothing, or be made, the first one"
        " (default: what the device does with it, or kill)",
    )
    guest.add_argument(
        "--fw-cfg",
        action="append",
        default=[],
        type=_fw_cfg_file,
        metavar="NAME=FILE",
        help="offer FILE to the guest through fw_cfg, as opt/org.example/name (repeatable)",
    )
    guest.add_argument(
        "--public-api", action="store_true", help="keep the modelled CPU to Unicorn's public interface"
    )
    confidential_options.add_arguments(parser)
    _add_console(parser)
    _add_output(parser)


def _add_console(parser: argparse.ArgumentParser) -> None:
    console = parser.add_argument_group("console")
    console.add_argument(
        "--serial", metavar="WHERE", help="stdio (default), none, file:PATH, pty, or unix:PATH"
    )
    console.add_argument(
        "--debugcon", type=Path, metavar="F", help="write debug output (port 0x402) to a file"
    )
    console.add_argument(
        "--type", action="append", default=[], metavar="TEXT", help="type TEXT at a prompt (repeatable)"
    )
    console.add_argument("--prompt", default="Shell> ", help="what a prompt looks like (%(default)r)")
    console.add_argument("--until", metavar="TEXT", help="end when the guest prints TEXT")
    console.add_argument("--timeout", type=seconds, metavar="S", help="end after S seconds")
    console.add_argument(
        "--watchdog",
        type=seconds,
        metavar="S",
        help="end as no-progress after S seconds of processor time without any access to a device",
    )
    console.add_argument(
        "--cut-power-at",
        type=power_cuts.cut_request,
        metavar="N",
        help="fail the power at flash command N, or random:SEED; all or all:COUNT judges many cuts of one boot",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("qemu", nargs="*", metavar="-- QEMU OPTION", help="the guest in QEMU's spelling")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--report",
        type=report_file,
        action="append",
        default=[],
        metavar="F",
        help="write what happened to F.html, one page to keep or attach, or to F.json (repeatable)",
    )
    output.add_argument("--json", action="store_true", help="one JSON document on standard output")
    output.add_argument(
        "-v", "--verbose", action="store_true", help="rejected protections, unclaimed accesses, ..."
    )


def size(text: str) -> int:
    """Bytes, from words as 256M or 2G. Raises argparse.ArgumentTypeError."""
    digits, suffix = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if not digits.isdecimal() or suffix not in _SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 256M or 2G")
    return int(digits) << _SUFFIXES[suffix]


def _fw_cfg_file(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=FILE")
    return name, Path(path)
