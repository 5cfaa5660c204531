"""``casemate conform``: which rules about launch and protection a VMM keeps (docs/guide/conform.md)."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from casemate.abi.kernel_eras import ERAS, NEWEST
from casemate.advise.conformance import Judgement, Verdict, judge
from casemate.advise.rule import Finding, Severity
from casemate.advise.sarif import sarif_of
from casemate.cli.parser import parse
from casemate.cli.serial_choice import is_stdio
from casemate.cli.vmm_child import run_vmm
from casemate.errors import SpecError
from casemate.evidence.kvm_trace import KvmStep, StepKind, read_copy
from casemate.userkvm.options import Options

EPILOG = """\
examples:
  casemate conform -- qemu-system-x86_64 -accel kvm -M q35 -m 256 -display none -bios OVMF.fd
      runs QEMU on the modelled KVM, and judges what it did once it ends
  casemate conform --era linux-6.10 --json -- ./my-vmm
      as under that kernel; one JSON document on standard output
  casemate conform --sarif -- ./my-vmm >conform.sarif
      what code hosts show: every breach, with the rule and its source
  casemate conform --self --guest sev-es --feature debug-swap --until 'Shell> '
      judges casemate's own VMM; what follows --self are options of casemate boot

Rules are kept, broken, or unseen: nothing happened that they are about.
exit code: 0 none is broken, 1 one is, 2 usage, 4 bad input, 5 this host cannot; the VMM's own is in the report
"""
_SIGNALLED = 128
_ORDER = {Verdict.BROKEN: 0, Verdict.KEPT: 1, Verdict.UNSEEN: 2}


@dataclass(frozen=True, slots=True)
class Judged:
    """One VM of one process."""

    program: str
    vm_type: str
    guest: str
    judgements: list[Judgement]

    @property
    def is_broken(self) -> bool:
        """Whether a rule is."""
        return any(each.verdict is Verdict.BROKEN for each in self.judgements)

    def to_json(self) -> dict[str, Any]:
        """The documented form."""
        return {
            "program": self.program,
            "type": self.vm_type,
            "guest": self.guest,
            "rules": [each.to_json() for each in self.judgements],
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare options."""
    parser.usage = (
        "casemate conform [options] -- COMMAND [ARGUMENT ...]\n"
        "       casemate conform [options] --self [BOOT OPTION ...]"
    )
    parser.add_argument("--era", default=NEWEST, choices=ERAS, help=f"the modelled kernel (default {NEWEST})")
    parser.add_argument(
        "--firmware",
        choices=("flash", "bios"),
        help="what the command's firmware lies in (default: flash if it says pflash, else bios)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document on standard output")
    form.add_argument("--sarif", action="store_true", help="the breaches as SARIF, for code hosts")
    parser.add_argument("--verbose", "-v", action="store_true", help="rules that nothing happened about, too")
    judged = parser.add_mutually_exclusive_group(required=True)
    judged.add_argument(
        "--self",
        dest="own",
        metavar="BOOT OPTION",
        nargs=argparse.REMAINDER,
        help="judge casemate boot instead",
    )
    judged.add_argument(
        "vmm", metavar="COMMAND", nargs="*", default=[], help="the VMM and its arguments, behind --"
    )


def run(args: argparse.Namespace) -> int:
    """Run and judge; returns the exit code."""
    code, judged = _own(args) if args.own is not None else _other(args)
    if not judged and args.own is not None and code:
        return code  # it said why
    if not judged:
        raise SpecError("the command made no VM, or was killed", "see what it said")
    if args.sarif:
        print(json.dumps(sarif_of(list(_breaches(judged)), "", "casemate conform"), indent=2))
    elif args.json:
        print(json.dumps({"exit_code": code, "vms": [each.to_json() for each in judged]}, indent=2))
    else:
        print("\n".join(_lines(judged, code, verbose=args.verbose)))
    return int(any(each.is_broken for each in judged))


def _breaches(judged: Iterable[Judged]) -> Iterator[Finding]:
    for each in judged:
        for judgement in each.judgements:
            rule = judgement.rule
            for breach in judgement.breaches:
                cause, remedy = f"{rule.title}; {breach}", f"keep the rule {rule.id} (docs/guide/conform.md)"
                yield Finding(
                    rule.id,
                    Severity.ERROR,
                    f"{each.program}, {each.guest} guest of type {each.vm_type}",
                    cause,
                    remedy,
                    rule.source,
                )


def _other(args: argparse.Namespace) -> tuple[int, list[Judged]]:
    is_bios = args.firmware == "bios" if args.firmware else not any("pflash" in word for word in args.vmm)
    ran = run_vmm(args.vmm, Options(args.era, traces=True), lambda summary: None)
    return ran.exit_code, [
        Judged(
            f"{summary['program']} (process {summary['pid']})",
            vm["type"],
            vm["guest"],
            judge(map(KvmStep.from_json, vm["steps"]), is_bios=is_bios),
        )
        for summary in ran.summaries
        for vm in summary["vms"]
        # QEMU makes VMs to ask them for their capabilities alone.
        if any(step["kind"] == "slot" for step in vm["steps"])
    ]


def _own(args: argparse.Namespace) -> tuple[int, list[Judged]]:
    words = parse(["boot", *args.own])
    line = ["--serial", "none"] if (args.json or args.sarif) and is_stdio(words) else []
    line += ["--host", f"model:{args.era}"] if words.host == "auto" else []
    # In a process of its own: a VMM that breaks a rule may write into what is protected, and die of it.
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", prefix="casemate-steps-") as steps:
        command = [sys.executable, "-m", "casemate.cli.traced_boot", steps.name, *line, *args.own]
        code = subprocess.run(command, stdout=2, check=False).returncode
        traces = read_copy(steps)
    if code < 0:
        print(f"casemate: casemate boot was killed by {signal.Signals(-code).name}", file=sys.stderr)
        code = _SIGNALLED - code
    return code, [
        Judged(
            "casemate boot", "modelled", str(words.guest), judge(trace.steps, is_bios=words.bios is not None)
        )
        for trace in traces
        if any(step.kind is StepKind.SLOT for step in trace.steps)
    ]


def _lines(judged: Iterable[Judged], code: int, *, verbose: bool) -> Iterable[str]:
    for each in judged:
        counts = dict.fromkeys(Verdict, 0)
        for judgement in each.judgements:
            counts[judgement.verdict] += 1
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        yield f"{each.program}: {each.vm_type}, {each.guest} guest, exit code {code}: {told}"
        for judgement in sorted(each.judgements, key=lambda found: _ORDER[found.verdict]):
            if judgement.verdict is Verdict.UNSEEN and not verbose:
                continue
            yield f"  {judgement.verdict:7} {judgement.rule.id}: {judgement.rule.title}"
            if judgement.verdict is Verdict.BROKEN:
                yield from (f"          {breach}" for breach in judgement.breaches)
                yield f"          ({judgement.rule.source})"
