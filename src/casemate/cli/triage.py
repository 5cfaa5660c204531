"""``casemate triage``: says what messages about a failed launch mean (docs/guide/triage.md)."""

from __future__ import annotations

import argparse
import json
import sys

from casemate.advise.triage import RULES, Diagnosis, triage
from casemate.cli.terminal import coloured
from casemate.errors import ImageError, printable
from casemate.files import LARGEST_DOCUMENT, read_file

EPILOG = """\
examples:
  casemate triage /var/log/libvirt/qemu/guest.log
  dmesg | casemate triage -
  qemu-system-x86_64 ... 2>&1 | casemate triage -
  casemate triage --json guest.log

exit code: 0 if a message is known, 1 if none is, 4 if the file cannot be read
"""

_UNKNOWN = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The log, and how to show what is known of it."""
    parser.add_argument(
        "log", metavar="FILE", help="a log of QEMU, libvirt, the kernel or firmware; - reads standard input"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Read, look, print; 0, or 1 if nothing is known."""
    found = triage(_read(args.log).splitlines())
    if args.json:
        print(json.dumps({"file": args.log, "known": [_entry(each) for each in found]}, indent=2))
    elif found:
        for each in found:
            _print(each, args.log)
    else:
        print(f"unknown: none of {len(RULES)} rules knows a line of it")
    return 0 if found else _UNKNOWN


def _read(name: str) -> str:
    if name != "-":
        return read_file(name, remedy="give a log, or - for standard input").decode(errors="replace")
    data = sys.stdin.buffer.read(LARGEST_DOCUMENT + 1)
    if len(data) > LARGEST_DOCUMENT:
        raise ImageError(
            name, f"over {LARGEST_DOCUMENT} bytes are too many", "give the lines around the failure"
        )
    return data.decode(errors="replace")


def _entry(found: Diagnosis) -> dict[str, object]:
    rule = found.rule
    return {
        "id": rule.id,
        "line": found.line,
        "lines": found.times,
        "text": found.text,
        "cause": found.cause,
        "remedy": rule.remedy,
        "check": rule.check,
        "reference": rule.source,
    }


def _print(found: Diagnosis, name: str) -> None:
    more = f" (and {found.times - 1} more)" if found.times > 1 else ""
    label = coloured(found.rule.id, "cyan", sys.stdout)
    print(f"{printable(name)}:{found.line}: {label}: {printable(found.text)}{more}")
    print(f"    cause: {printable(found.cause)}\n    remedy: {found.rule.remedy}")
    print(f"    check: {found.rule.check}\n    see: {found.rule.source}")
