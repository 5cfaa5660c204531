"""``casemate lint``: says what is wrong with a QEMU command line or a libvirt domain (docs/guide/lint.md)."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict

from casemate.abi.kvm.capabilities import Capability
from casemate.abi.kvm.vm_types import VmType
from casemate.advise.domain_xml import words_of_domain
from casemate.advise.lint import lint
from casemate.advise.rule import Finding, HostFacts, Severity
from casemate.cli.terminal import coloured
from casemate.errors import ImageError, SpecError, UnsupportedError
from casemate.files import read_text
from casemate.firmware.image import FirmwareImage
from casemate.host.kvm.survey import survey_kvm

EPILOG = """\
examples:
  casemate lint -- qemu-system-x86_64 -accel kvm -machine q35 -drive if=pflash,format=raw,file=OVMF_CODE.fd
  casemate lint domain.xml                      what virsh dumpxml printed
  casemate lint --era linux-6.6 start-guest.sh  a file with one QEMU command line
  casemate lint --this-host domain.xml

exit code: 0 without errors, 1 with errors; warnings and notes do not count
"""

_ERRORS = 1
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to look at, and the host it is for."""
    host = parser.add_mutually_exclusive_group()
    host.add_argument(
        "--era", metavar="NAME", help="kernel of the host, such as linux-6.8 (default: the newest known)"
    )
    host.add_argument("--this-host", action="store_true", help="ask the KVM of this machine instead")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument(
        "words", metavar="FILE | -- COMMAND...", nargs="+", help="a file, or the command line itself"
    )


def run(args: argparse.Namespace) -> int:
    """Look, print; 0, or 1 if there is an error."""

    host = _host(args)
    findings, unread = lint(_words(args.words), host, _load)
    if args.json:
        found = [asdict(finding) for finding in findings]
        print(json.dumps({"host": host.name, "findings": found, "unread": unread}, indent=2))
    else:
        _print(findings, unread, host.name)
    return _ERRORS if any(finding.severity is Severity.ERROR for finding in findings) else 0


def _host(args: argparse.Namespace) -> HostFacts:
    from casemate.abi.kernel_eras import NEWEST

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
    return HostFacts("this host", frozenset(offered), readonly)


def _words(words: list[str]) -> list[str]:
    if len(words) > 1 or words[0].startswith("-"):
        return words
    text = read_text(words[0], "give a domain XML or a command line, or the command line itself behind --")
    if text.lstrip().startswith("<"):
        return words_of_domain(text)
    remedy = "give one command, quoted as for a shell"
    try:
        line = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise SpecError(f"{words[0]}: no command line: {error}", remedy) from None
    if not line:
        raise SpecError(f"{words[0]}: no command line: nothing is in it", remedy)
    return line


def _load(path: str) -> FirmwareImage | None:
    try:
        return FirmwareImage.load(path)
    except ImageError:
        return None


def _print(findings: list[Finding], unread: list[str], host: str) -> None:
    for finding in findings:
        severity = coloured(str(finding.severity), _COLOURS[finding.severity], sys.stdout)
        print(f"{severity}: {finding.id}: {finding.cause}")
        print(f"    option: {finding.option}\n    remedy: {finding.remedy}\n    see: {finding.reference}")
    counts = {name: sum(one.severity == name for one in findings) for name in ("error", "warning", "note")}
    words = (f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())
    print(f"{', '.join(words)}, for {host}")
    for path in unread:
        print(f"not read, judged by its name: {path!r}")
