"""``casemate lint``: says what is wrong with a QEMU command line or a libvirt domain (docs/guide/lint.md)."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

from casemate.abi.kernel_eras import NEWEST
from casemate.abi.kvm.capabilities import Capability
from casemate.abi.kvm.vm_types import VmType
from casemate.advise.lint import lint
from casemate.advise.rule import Finding, HostFacts, Severity
from casemate.advise.sarif import sarif_of
from casemate.cli.ask_qemu import ask_qemu
from casemate.cli.terminal import coloured
from casemate.errors import ImageError, SpecError, UnsupportedError, printable
from casemate.files import read_file
from casemate.firmware.descriptors import Descriptor, firmware_roots, read_descriptors
from casemate.firmware.image import FirmwareImage
from casemate.firmware.volume import Allowance
from casemate.host.kvm.survey import survey_kvm
from casemate.qemu.releases import QemuFacts, version_of
from casemate.qemu.shell import LONGEST_TEXT
from casemate.qemu.source import Command, command_of_words, read_commands

EPILOG = """\
examples:
  casemate lint -- qemu-system-x86_64 -accel kvm -machine q35 -drive if=pflash,format=raw,file=OVMF_CODE.fd
  casemate lint domain.xml                      what virsh dumpxml printed
  casemate lint --era linux-6.6 start-guest.sh  a script with a QEMU command line
  casemate lint --qemu 10.2 /proc/4711/cmdline  a guest that runs, for another QEMU
  casemate lint --this-host --this-qemu /usr/bin/qemu-system-x86_64 domain.xml
  casemate lint --format sarif start-guest.sh   for code hosts and editors

exit code: 0 without errors, 1 with errors (warnings and notes do not count), 4 if it is no QEMU command line or domain
"""

_ERRORS = 1
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_LONGEST_SHOWN = 400
"""Characters of an option; JSON has all of them."""
_READABLE = 256 << 20
"""Bytes of all files that one command reads."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to look at, and the host it is for."""
    host = parser.add_mutually_exclusive_group()
    host.add_argument(
        "--era", metavar="NAME", help="kernel of the host, such as linux-6.8 (default: the newest known)"
    )
    host.add_argument("--this-host", action="store_true", help="ask the KVM of this machine instead")
    qemu = parser.add_mutually_exclusive_group()
    qemu.add_argument("--qemu", metavar="VERSION", help="release of QEMU, such as 10.2 (default: any)")
    qemu.add_argument("--this-qemu", metavar="PATH", help="ask this binary what it has")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--format", choices=("text", "json", "sarif"), default="text", help="how to print it")
    form.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument(
        "words", metavar="FILE | -- COMMAND...", nargs="+", help="a file, or the command line itself"
    )


def run(args: argparse.Namespace) -> int:
    """Look, print; 0, or 1 if there is an error."""

    host, qemu = _host(args), _qemu(args)
    name, commands = _commands(args.words)
    descriptors = _descriptors(commands)
    load, allowance = _loader(), Allowance()
    findings: list[Finding] = []
    unread: list[str] = []
    for command in commands:
        try:
            found, missing = lint(command, host, load, qemu, descriptors, allowance)
        except SpecError as error:
            raise SpecError(f"{name}: {error.cause}" if name else error.cause, error.remedy) from None
        findings += found
        unread += (path for path in missing if path not in unread)
    findings.sort(key=lambda finding: list(Severity).index(finding.severity))
    if args.json or args.format == "json":
        found_as = [asdict(finding) | {"file": name} for finding in findings]
        examined = [command.what for command in commands]
        document = {"host": host.name, "qemu": qemu.name, "examined": examined}
        print(json.dumps(document | {"findings": found_as, "unread": unread}, indent=2))
    elif args.format == "sarif":
        print(json.dumps(sarif_of(findings, name), indent=2))
    else:
        _print(findings, unread, name, commands, f"{host.name} and {qemu.name}")
    return _ERRORS if any(finding.severity is Severity.ERROR for finding in findings) else 0


def _host(args: argparse.Namespace) -> HostFacts:
    if not args.this_host:
        return HostFacts.of_era(args.era or NEWEST)

    survey = survey_kvm()
    if not survey.is_usable:
        raise UnsupportedError(
            f"--this-host: {survey.refusal or 'no VM can be made'}", "name an --era instead"
        )
    offered = {VmType[offer.name]: offer for offer in survey.vm_types if offer.offered}
    name = Capability.READONLY_MEM.kernel_name
    readonly = frozenset(kind for kind, offer in offered.items() if offer.capabilities.get(name))
    return HostFacts("this host", frozenset(offered), readonly, c_bit=survey.c_bit)


def _qemu(args: argparse.Namespace) -> QemuFacts:
    if args.this_qemu:
        return QemuFacts(ask_qemu([args.this_qemu]))
    return QemuFacts(version_of(args.qemu)) if args.qemu else QemuFacts()


def _commands(words: list[str]) -> tuple[str, list[Command]]:
    """The name of the file, empty if there is none, and what it asks for."""
    if len(words) > 1 or words[0].startswith("-"):
        return "", [command_of_words(words)]
    remedy = "give a domain XML or a command line, or the command line itself behind --"
    return words[0], read_commands(read_file(words[0], limit=LONGEST_TEXT, remedy=remedy), words[0])


def _descriptors(commands: list[Command]) -> list[Descriptor]:
    """Those of this machine, if libvirt would choose by them."""
    if not any(command.domain.chooses_firmware for command in commands):
        return []
    return [descriptor for root in firmware_roots(os.environ) for descriptor in read_descriptors(root)]


def _loader() -> Callable[[str], FirmwareImage | None]:
    """Reads each file once, and no more bytes of all than one command may."""
    left = _READABLE
    known: dict[str, FirmwareImage | None] = {}

    def load(path: str) -> FirmwareImage | None:
        nonlocal left
        if path not in known:
            try:
                known[path] = FirmwareImage.load(path)
            except ImageError:
                known[path] = None
            image = known[path]
            left -= image.size if image else 0
            if left < 0:
                raise SpecError(f"its files have over {_READABLE} bytes in all", "give one guest")
        return known[path]

    return load


def _print(
    findings: list[Finding], unread: list[str], name: str, commands: list[Command], scope: str
) -> None:
    for finding in findings:
        severity = coloured(str(finding.severity), _COLOURS[finding.severity], sys.stdout)
        place = f"{printable(name)}:{finding.line}:{finding.column}: " if name and finding.line else ""
        print(f"{place}{severity}: {finding.id}: {printable(finding.cause)}")
        print(f"    option: {printable(_short(finding.option))}\n    remedy: {printable(finding.remedy)}")
        print(f"    see: {finding.reference}")
    counts = {word: sum(one.severity == word for one in findings) for word in ("error", "warning", "note")}
    words = (f"{count} {word}{'' if count == 1 else 's'}" for word, count in counts.items())
    print(f"{', '.join(words)}, for {scope}")
    kinds = Counter(command.what for command in commands)
    print(
        "examined: "
        + ", ".join(f"{what} ({count} of them)" if count > 1 else what for what, count in kinds.items())
    )
    for path in unread:
        print(f"not read, judged by its name: {path!r}")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
