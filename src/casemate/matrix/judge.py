"""Results against what was expected of them (docs/guide/matrix.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from casemate.matrix.plan import Cell, Matrix, is_at
from casemate.matrix.results import Record

_COMPARED = (
    "outcome",
    "exit_code",
    "protection",
    "digest",
    "warnings",
    "violations",
    "findings",
    "broken_rules",
)


class Verdict(StrEnum):
    """What a cell's result is worth."""

    GOOD = "good"
    BAD = "bad"
    UNJUDGED = "unjudged"
    """Nothing was expected of it."""
    MISSING = "missing"
    """It has not run."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One cell with its last result and its verdict; ``reasons`` say what is not as expected."""

    cell: Cell
    verdict: Verdict
    record: Record | None = None
    reasons: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    """What is different from the earlier result."""
    is_flaky: bool = False
    """Whether repetitions with the same key ended differently."""
    seconds: tuple[float, ...] = field(default=())
    """Of each repetition."""


def judge_cells(
    matrix: Matrix, keys: Mapping[str, str], records: Sequence[Record], earlier: Sequence[Record]
) -> list[Judged]:
    """Every cell of the matrix, by its name's key; ``earlier`` are results to compare with, the oldest first."""
    by_key: dict[str, dict[int, Record]] = {}
    for record in records:
        by_key.setdefault(record.key, {})[record.round] = record
    before: dict[str, Record] = {}
    for record in earlier:
        if record.key != keys.get(record.name):
            before[record.name] = record

    names = {(tuple(cell.place.values()), cell.extra): cell.name for cell in matrix.cells}

    def baseline(cell: Cell, where: Mapping[str, list[Any]]) -> Record | None:
        place = cell.place | {axis: values[0] for axis, values in where.items()}
        name = names.get((tuple(place.values()), cell.extra))
        return next(iter(by_key.get(keys[name], {}).values()), None) if name else None

    return [
        _judge(cell, by_key.get(keys[cell.name], {}), before.get(cell.name), baseline)
        for cell in matrix.cells
    ]


def _judge(
    cell: Cell,
    rounds: Mapping[int, Record],
    before: Record | None,
    baseline: Callable[[Cell, Mapping[str, list[Any]]], Record | None],
) -> Judged:
    if not rounds:
        return Judged(cell, Verdict.MISSING)
    reasons: dict[str, None] = {}
    for record in rounds.values():
        reasons |= dict.fromkeys(_reasons(cell, record.result))
        if "slower" in cell.wanted:
            reasons |= dict.fromkeys(_slower(cell, record, baseline))
    last = rounds[max(rounds)]
    outcomes = {tuple(str(record.result.get(name)) for name in _COMPARED) for record in rounds.values()}
    if reasons or not last.is_final:
        verdict = Verdict.BAD
        reasons = reasons or {str(last.result["detail"]): None}
    else:
        verdict = Verdict.GOOD if cell.wanted else Verdict.UNJUDGED
    return Judged(
        cell,
        verdict,
        last,
        tuple(reasons),
        tuple(_changes(before.result, last.result)) if before else (),
        len(outcomes) > 1,
        tuple(record.result["seconds"] for record in rounds.values()),
    )


def _reasons(cell: Cell, result: Mapping[str, Any]) -> list[str]:
    found = (_REASONS[name](name, wanted, result) for name, wanted in cell.wanted.items() if name in _REASONS)
    return [reason for reason in found if reason]


def _not_one_of(name: str, wanted: Any, result: Mapping[str, Any]) -> str:
    seen, allowed = result.get(name), wanted if isinstance(wanted, list) else [wanted]
    if seen in allowed:
        return ""
    detail = f" ({result['detail']})" if name == "outcome" and result["detail"] else ""
    return f"{name} is {seen}, not {' or '.join(allowed)}{detail}"


def _warnings(_: str, wanted: int, result: Mapping[str, Any]) -> str:
    seen = result.get("warnings", [])
    return f"{len(seen)} warnings: {'; '.join(seen)}" if len(seen) > wanted else ""


def _violations(_: str, wanted: int, result: Mapping[str, Any]) -> str:
    count = result.get("violations", 0)
    return f"{count} violations" if count > wanted else ""


def _findings(_: str, wanted: list[str], result: Mapping[str, Any]) -> str:
    others = sorted(set(result.get("findings", [])) - set(wanted))
    return f"lint finds {', '.join(others)}" if others else ""


def _conformance(_: str, _wanted: str, result: Mapping[str, Any]) -> str:
    broken = result.get("broken_rules")
    if broken is None:
        return "its conformance was not judged"
    return f"breaks {', '.join(broken)}" if broken else ""


def _seconds(_: str, wanted: float, result: Mapping[str, Any]) -> str:
    return f"took {result['seconds']} s, over {wanted} s" if result["seconds"] > wanted else ""


_REASONS: dict[str, Callable[[str, Any, Mapping[str, Any]], str]] = {
    **dict.fromkeys(("outcome", "protection", "digest"), _not_one_of),
    "warnings": _warnings,
    "violations": _violations,
    "findings": _findings,
    "conformance": _conformance,
    "seconds": _seconds,
}
"""What each expectation has to say against a result; nothing if it is as expected."""


def _slower(
    cell: Cell, record: Record, baseline: Callable[[Cell, Mapping[str, list[Any]]], Record | None]
) -> list[str]:
    wanted = cell.wanted["slower"]
    if is_at(cell.place, wanted["than"]):
        return []
    other = baseline(cell, wanted["than"])
    if other is None:
        return ["there is no baseline to compare its time with"]
    ratio = record.result["seconds"] / max(other.result["seconds"], 1e-3)
    if ratio <= wanted["times"]:
        return []
    return [f"took {ratio:.2f} times as long as {other.name!r}, over {wanted['times']}"]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {before.get(name)} before, {now.get(name)} now"
        for name in _COMPARED
        if before.get(name) != now.get(name)
    ]
