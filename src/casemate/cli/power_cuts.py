"""``casemate boot --cut-power-at``: one cut, or the judgement of many cuts of one boot (docs/guide/power-cuts.md)."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

from casemate.advise.store_check import check_store
from casemate.cli.terminal import progress
from casemate.errors import ImageError, InternalError, SpecError
from casemate.firmware.image import FirmwareImage
from casemate.machine.boot import Attachments, boot
from casemate.machine.machine import Machine
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.power_cut import FlashChange, FlashJournal, PowerCut, store_after_cut
from casemate.machine.spec import MachineSpec

_RANDOM_LIMIT = 16_000
_UNTIL = "Shell> "
_NEXT_BOOT_SECONDS, _NEXT_BOOT_WATCHDOG = 120.0, 20.0
"""Firmware that formats its store makes 800,000 programs; what makes none for long is stuck."""
_HEADINGS = ("after the cut", "next boot", "store after it", "cuts", "for example at")


@dataclass(frozen=True, slots=True)
class CutRequest:
    """The option, parsed: ``number`` for one cut, or None for ``most`` cuts of all."""

    number: int | None
    most: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a cut left, whether the guest booted again, and what is in its store after that."""

    number: int
    after_cut: str
    next_boot: str
    after_boot: str


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


def validate_cut(spec: MachineSpec) -> None:
    """Check that there is something to cut. Raises SpecError if not."""
    if spec.variables is None:
        raise SpecError("--cut-power-at needs a variable store in flash", "give --code and --vars")
    if spec.kind.is_confidential:
        raise SpecError("--cut-power-at is for plain guests", "leave --guest out")


def cutter(request: CutRequest) -> Callable[[Machine], None]:
    """What makes a machine lose its power, to be called before it runs."""

    return PowerCut(request.number or 1).attach


def judge_cuts(spec: MachineSpec, request: CutRequest, until: str | None, as_json: bool) -> int:
    """Boot once, cut that boot at every (or every so many) flash command, boot again from each; print a table.

    Returns 0, or the exit code of the signal that ended it early. The user's variable store is only read. Always on
    the model. Raises SpecError if the boot itself does not get to ``until``.
    """

    template = _read(_variables(spec))
    with tempfile.TemporaryDirectory(prefix="casemate-cuts-") as folder:
        scratch = replace(spec, variables=Path(folder, "VARS.fd"))
        changes, first = _record(scratch, template, until or _UNTIL)
        if first.ending is not Ending.UNTIL:
            raise SpecError(f"the boot to cut does not get far: {first.detail}", "see what --until waits for")
        numbers = _sample(len(changes), request.most)
        judgements, exit_code = _judge_all(scratch, template, changes, numbers, until or _UNTIL)
    if as_json:
        cuts = [asdict(judgement) for judgement in judgements]
        print(json.dumps({"commands": len(changes), "cuts": cuts}, indent=2))
    else:
        print(f"{len(changes)} flash commands, {len(judgements)} cuts")
        print(table(judgements))
    return exit_code


def table(judgements: list[Judgement]) -> str:
    """Lines of a Markdown table: how many cuts ended in which way."""
    counts = Counter(astuple(judgement)[1:] for judgement in judgements)
    rows = [_HEADINGS, ("---",) * len(_HEADINGS)]
    for kind, count in counts.most_common():
        example = next(judgement.number for judgement in judgements if astuple(judgement)[1:] == kind)
        rows.append((*kind, str(count), str(example)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _sample(total: int, most: int) -> list[int]:
    if total <= most:
        return list(range(1, total + 1))
    return sorted({1 + index * (total - 1) // max(most - 1, 1) for index in range(most)})


def _record(spec: MachineSpec, template: bytes, until: str) -> tuple[list[FlashChange], Outcome]:
    journal = FlashJournal()
    _variables(spec).write_bytes(template)
    outcome = boot(spec, until=until, timeout=100, attachments=Attachments(on_start=journal.attach))
    return journal.changes, outcome


def _judge_all(
    spec: MachineSpec, template: bytes, changes: list[FlashChange], numbers: list[int], until: str
) -> tuple[list[Judgement], int]:
    judgements: list[Judgement] = []
    for number in progress(numbers, len(numbers), "cuts judged"):
        store = store_after_cut(template, changes, number)
        _variables(spec).write_bytes(store)
        try:
            ending = boot(spec, until=until, timeout=_NEXT_BOOT_SECONDS, watchdog=_NEXT_BOOT_WATCHDOG).ending
            if ending in (Ending.INTERRUPTED, Ending.TERMINATED):
                return judgements, ending.exit_code
            next_boot = ending.word
        except ImageError:
            next_boot = "refused"
        after = _verdict(_read(_variables(spec)))
        judgements.append(Judgement(number, _verdict(store), next_boot, after))
    return judgements, 0


def _verdict(store: bytes) -> str:
    try:
        check = check_store(store, "store")
    except ImageError:
        return "no store"
    if not check.findings:
        return "clean"
    errors = [finding.what for finding in check.findings if finding.severity == "error"]
    return (errors or [finding.what for finding in check.findings])[0].partition(":")[0]


def _variables(spec: MachineSpec) -> Path:
    if spec.variables is None:
        raise InternalError("no scratch store")
    return spec.variables


def _read(path: Path) -> bytes:
    return FirmwareImage.load(path).data
