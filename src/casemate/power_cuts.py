"""What cuts of the power leave: a store, the next boot, and the store after that (docs/guide/power-cuts.md)."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from casemate.advise.store_check import check_store
from casemate.errors import ImageError, InternalError, SpecError
from casemate.firmware.image import FirmwareImage
from casemate.machine.boot import Attachments, boot
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.power_cut import FlashChange, FlashJournal, store_after_cut
from casemate.machine.spec import MachineSpec

_RECORD_SECONDS = 100.0
_NEXT_BOOT_SECONDS, _NEXT_BOOT_WATCHDOG = 120.0, 20.0
"""Firmware that formats its store makes 800,000 programs; what makes none for long is stuck."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a cut left, whether the guest booted again, and what is in its store after that."""

    number: int
    after_cut: str
    next_boot: str
    after_boot: str


@dataclass(frozen=True, slots=True)
class CutReport:
    """Flash commands of the boot, and its cuts; ``exit_code`` is that of the signal that ended them early."""

    commands: int
    judgements: tuple[Judgement, ...]
    exit_code: int = 0

    @property
    def next_boots(self) -> dict[str, int]:
        """How many next boots ended in which way."""
        return dict(Counter(each.next_boot for each in self.judgements))


def judge_cuts(
    spec: MachineSpec,
    most: int,
    until: str,
    around: Callable[[list[int]], Iterable[int]] = iter,
) -> CutReport:
    """Boot once, cut that boot at every (at most ``most``) flash command, and boot again from each.

    The variable store of ``spec`` is only read. Always on the model. ``around`` may show the numbers as they go by.
    Raises SpecError if the boot itself does not get to ``until``.
    """
    template = _read(_variables(spec))
    with tempfile.TemporaryDirectory(prefix="casemate-cuts-") as folder:
        scratch = spec.replace(variables=Path(folder, "VARS.fd"))
        changes, first = _record(scratch, template, until)
        if first.ending is not Ending.UNTIL:
            raise SpecError(f"the boot to cut does not get far: {first.detail}", "see what --until waits for")
        judgements: list[Judgement] = []
        for number in around(_sample(len(changes), most)):
            store = store_after_cut(template, changes, number)
            _variables(scratch).write_bytes(store)
            try:
                ending = boot(
                    scratch, until=until, timeout=_NEXT_BOOT_SECONDS, watchdog=_NEXT_BOOT_WATCHDOG
                ).ending
                if ending in (Ending.INTERRUPTED, Ending.TERMINATED):
                    return CutReport(len(changes), tuple(judgements), ending.exit_code)
                next_boot = ending.word
            except ImageError:
                next_boot = "refused"
            after = _verdict(_read(_variables(scratch)))
            judgements.append(Judgement(number, _verdict(store), next_boot, after))
    return CutReport(len(changes), tuple(judgements))


def _sample(total: int, most: int) -> list[int]:
    if total <= most:
        return list(range(1, total + 1))
    return sorted({1 + index * (total - 1) // max(most - 1, 1) for index in range(most)})


def _record(spec: MachineSpec, template: bytes, until: str) -> tuple[list[FlashChange], Outcome]:
    journal = FlashJournal()
    _variables(spec).write_bytes(template)
    attachments = Attachments(on_start=journal.attach)
    outcome = boot(spec, until=until, timeout=_RECORD_SECONDS, attachments=attachments)
    return journal.changes, outcome


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
