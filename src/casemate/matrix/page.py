"""The results of a matrix as one HTML file that needs no server (docs/guide/matrix.md)."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from casemate.matrix.judge import Judged, Verdict
from casemate.matrix.plan import Matrix
from casemate.version import __version__

_SLOWEST_SHOWN = 10


def render_page(matrix: Matrix, judged: list[Judged]) -> str:
    """The grid: a row for each combination of all axes but the last one, whose values are the columns."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    text = files("casemate.matrix").joinpath("matrix.html.j2").read_text("utf-8")
    *row_axes, column_axis = matrix.axes
    rows: dict[tuple[tuple[str, ...], str], dict[str, Judged]] = {}
    for each in judged:
        place = each.cell.place
        row = tuple(str(place[axis]) for axis in row_axes), each.cell.extra
        rows.setdefault(row, {})[str(place[column_axis])] = each
    counts = Counter(each.verdict for each in judged)
    timed = [each for each in judged if each.record]
    return environment.from_string(text).render(
        version=__version__,
        name=matrix.name,
        axes={axis: [str(value) for value in values] for axis, values in matrix.axes.items()},
        row_axes=row_axes,
        column_axis=column_axis,
        columns=[str(value) for value in matrix.axes[column_axis]],
        rows=rows,
        counts=[(str(verdict), counts[verdict]) for verdict in Verdict if counts[verdict]],
        verdict=_overall(counts),
        bad=[each for each in judged if each.reasons],
        changed=[each for each in judged if each.changes],
        flaky=[each for each in judged if each.is_flaky],
        slowest=sorted(timed, key=lambda each: -max(each.seconds))[:_SLOWEST_SHOWN],
    )


def _overall(counts: Counter[Verdict]) -> str:
    if counts[Verdict.BAD]:
        return "bad"
    return "unsure" if counts[Verdict.MISSING] or not counts[Verdict.GOOD] else "good"
