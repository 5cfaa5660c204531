"""``casemate boot --cut-power-at``: one cut, or the judgement of many cuts of one boot (docs/guide/power-cuts.md)."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass

from casemate.cli.terminal import progress
from casemate.errors import SpecError
from casemate.machine.machine import Machine
from casemate.machine.power_cut import PowerCut
from casemate.machine.spec import MachineSpec
from casemate.power_cuts import Judgement, judge_cuts

_RANDOM_LIMIT = 16_000
_UNTIL = "Shell> "
_HEADINGS = ("after the cut", "next boot", "store after it", "cuts", "for example at")


@dataclass(frozen=True, slots=True)
class CutRequest:
    """The option, parsed: ``number`` for one cut, or None for ``most`` cuts of all."""

    number: int | None
    most: int

    def validate(self, spec: MachineSpec) -> None:
        """Check that there is something to cut. Raises SpecError if not."""
        if spec.variables is None:
            raise SpecError("--cut-power-at needs a variable store in flash", "give --code and --vars")
        if spec.kind.is_confidential:
            raise SpecError("--cut-power-at is for plain guests", "leave --guest out")

    def attach(self, machine: Machine) -> None:
        """Make a machine lose its power, before it runs."""
        PowerCut(self.number or 1).attach(machine)

    def print_all(self, spec: MachineSpec, until: str | None, as_json: bool) -> int:
        """Judge cuts of one boot, and print a table.

        Returns 0, or the exit code of the signal that ended it early. Raises SpecError if the boot itself does not get
        to ``until``.
        """
        report = judge_cuts(
            spec, self.most, until or _UNTIL, lambda numbers: progress(numbers, len(numbers), "cuts judged")
        )
        if as_json:
            cuts = [asdict(judgement) for judgement in report.judgements]
            print(json.dumps({"commands": report.commands, "cuts": cuts}, indent=2))
        else:
            print(f"{report.commands} flash commands, {len(report.judgements)} cuts")
            print(table(report.judgements))
        return report.exit_code


def cut_request(text: str) -> CutRequest:
    """An argparse type: ``N``, ``random:SEED``, ``all`` or ``all:COUNT``."""
    word, _, rest = text.partition(":")
    if word == "all" and (not rest or (rest.isdecimal() and int(rest))):
        return CutRequest(None, int(rest or sys.maxsize))
    if word == "random" and rest:
        return CutRequest(random.Random(rest).randint(1, _RANDOM_LIMIT), 0)
    if text.isdecimal() and int(text):
        return CutRequest(int(text), 0)
    raise argparse.ArgumentTypeError(f"{text!r} is no cut: give N, random:SEED, all, or all:COUNT")


def table(judgements: Sequence[Judgement]) -> str:
    """Lines of a Markdown table: how many cuts ended in which way."""
    counts = Counter(astuple(judgement)[1:] for judgement in judgements)
    rows = [_HEADINGS, ("---",) * len(_HEADINGS)]
    for kind, count in counts.most_common():
        example = next(judgement.number for judgement in judgements if astuple(judgement)[1:] == kind)
        rows.append((*kind, str(count), str(example)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
