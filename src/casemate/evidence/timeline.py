"""A run on a line of time, in percent of its length, ready to draw (docs/guide/evidence.md)."""

from __future__ import annotations

from math import floor, log1p, log10
from typing import Any, NamedTuple

_FIRST_PHASE, _FIRST_WITHOUT_FIRMWARE = "SEC", "load"
_TICKS = 6


class Span(NamedTuple):
    """Something with an extent: ``left`` and ``width`` in percent."""

    name: str
    left: float
    width: float


class Bar(NamedTuple):
    """Flash commands in a short time; ``height`` in percent, by the logarithm of their number."""

    left: float
    width: float
    height: float


class Mark(NamedTuple):
    """A moment."""

    name: str
    left: float


class Timeline(NamedTuple):
    """Phases, flash commands, violations and changes of protection of one run of ``seconds``."""

    seconds: float
    phases: tuple[Span, ...]
    commands: tuple[Bar, ...]
    violations: tuple[Mark, ...]
    changes: tuple[Mark, ...]
    ticks: tuple[Mark, ...]


def make_timeline(document: dict[str, Any]) -> Timeline:
    """From the JSON document of a run."""
    writes = document["writes"]
    activity = [item for unit in writes["units"] for item in unit["activity"]]
    times = [document["seconds"], *(item["at"] + item["seconds"] for item in activity)]
    times += [item["at"] for item in (*document["phases"], *writes["events"], *document["protection_audit"])]
    end = 1.01 * max(times) or 1.0  # so that what ends the run is still seen
    most = max((item["count"] for item in activity), default=1)

    def percent(seconds: float) -> float:
        return round(100 * seconds / end, 3)

    kernel = document["kernel"]
    is_direct = kernel is not None and kernel["started_by"] == "casemate"
    first = _FIRST_WITHOUT_FIRMWARE if is_direct else _FIRST_PHASE
    starts = [(first, 0.0), *((phase["name"], phase["at"]) for phase in document["phases"])]
    stops = [at for _, at in starts[1:]] + [end]
    return Timeline(
        seconds=end,
        phases=tuple(
            Span(name, percent(at), percent(stop - at))
            for (name, at), stop in zip(starts, stops, strict=True)
        ),
        commands=tuple(
            Bar(
                percent(item["at"]),
                percent(item["seconds"]),
                round(100 * log1p(item["count"]) / log1p(most), 1),
            )
            for item in activity
        ),
        violations=tuple(Mark(item["kind"], percent(item["at"])) for item in writes["events"]),
        changes=tuple(
            Mark(f"unit {item['unit']} {item['what']}", percent(item["at"]))
            for item in document["protection_audit"]
        ),
        ticks=tuple(Mark(f"{at:g}", percent(at)) for at in _ticks(end)),
    )


def _ticks(end: float) -> list[float]:
    rough = end / _TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(step * index, 9) for index in range(int(end / step) + 1)]
