"""``casemate matrix``: one question of many combinations, from a file (docs/guide/matrix.md)."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from casemate.cli.terminal import coloured, progress
from casemate.errors import SpecError, UnsupportedError, printable
from casemate.files import write_whole
from casemate.matrix.judge import Judged, Verdict, judge_cells
from casemate.matrix.plan import Cell, Matrix, load_matrix
from casemate.matrix.results import Results, load_records
from casemate.matrix.run import Job, Pool, jobs_to_run, keys_of, local_pool, run_jobs
from casemate.matrix.summaries import to_junit, to_markdown

EPILOG = """\
examples:
  casemate matrix debian.toml
      runs what has no result yet, in processes here; debian.matrix/ has results, reports and matrix.html
  casemate matrix debian.toml --list
      the cells, and which of them would run
  casemate matrix debian.toml --only kind=sev-es --only era=linux-6.18
      some of the cells
  casemate matrix debian.toml --on local:4
      on a Dask cluster of this machine's; tls://HOST:8786 is another one's (pip install 'casemate[matrix]')
  casemate matrix debian.toml --junit junit.xml --markdown summary.md --against yesterday.matrix
      for a CI system, with what changed since another run
  casemate matrix debian.toml --repeat 5
      finds cells that end differently each time

A cell whose inputs, code and options are as they were has its result already. Ctrl-C keeps what is done.
exit code: 0 every cell is as expected, 1 one is not, 2 usage, 4 bad input, 5 this host cannot
"""
_COLOURS = {Verdict.GOOD: "green", Verdict.BAD: "red", Verdict.UNJUDGED: "yellow", Verdict.MISSING: "yellow"}


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare options."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the matrix, TOML")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder of results (default: FILE's name with .matrix)"
    )
    parser.add_argument(
        "--jobs", metavar="N", type=_positive, help="cells at once (default: one per processor)"
    )
    parser.add_argument(
        "--on", metavar="CLUSTER", help="local:N, tls://HOST:PORT or tcp://HOST:PORT: run on Dask"
    )
    parser.add_argument(
        "--only", metavar="AXIS=VALUE", action="append", default=[], help="cells with this value alone"
    )
    parser.add_argument("--repeat", metavar="N", type=_positive, default=1, help="run each cell N times")
    parser.add_argument(
        "--against", metavar="DIR", type=Path, help="say what changed since the results in DIR"
    )
    parser.add_argument("--list", action="store_true", help="show the cells and run nothing")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--junit", metavar="FILE", type=Path, help="write JUnit's XML")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write a summary in Markdown")


def run(args: argparse.Namespace) -> int:
    """Run what has to be run, and judge; returns the exit code."""
    whole = load_matrix(args.file)
    matrix = _only(whole, args.only)
    keys = keys_of(whole)
    pool = _pool(args)
    earlier = load_records(args.against) if args.against else None
    folder = args.out or Path(f"{args.file.stem}.matrix")
    if args.list:
        _list(args, matrix, keys, folder)
        return 0
    with Results(folder) as results:
        jobs = jobs_to_run(matrix, keys, results.records, args.repeat)
        stopped = _run_all(jobs, pool, results)
        compared = results.records if earlier is None else earlier
        chosen = {cell.name for cell in matrix.cells}
        # Of the whole matrix: what was not chosen may be the baseline of what was.
        judged = [
            each for each in judge_cells(whole, keys, results.records, compared) if each.cell.name in chosen
        ]
        _write_pages(args, matrix, judged, folder)
        _tell(args, judged, len(jobs), folder)
    if stopped:
        raise KeyboardInterrupt
    return int(any(each.verdict in (Verdict.BAD, Verdict.MISSING) for each in judged))


def _pool(args: argparse.Namespace) -> Pool:
    if not args.on:
        return local_pool(args.jobs or len(os.sched_getaffinity(0)))
    if args.jobs:
        raise SpecError("--jobs is for cells here, and --on says where else", "leave one of them out")
    if args.on.startswith("tcp:"):
        print(
            f"casemate: warning: {args.on}: whoever reaches this port runs code on its workers; use tls://",
            file=sys.stderr,
        )

    def pool(jobs: Sequence[Job]) -> Any:
        # Heavy, optional, and of no use where every cell has its result.
        try:
            from casemate.matrix.cluster import cluster_pool
        except ModuleNotFoundError as error:
            cause = f"--on {args.on}: the package {error.name} is not installed"
            raise UnsupportedError(cause, "pip install 'casemate[matrix]', or leave --on out") from None
        return cluster_pool(args.on)(jobs)

    return pool


def _only(matrix: Matrix, words: Sequence[str]) -> Matrix:
    chosen: dict[str, set[str]] = {}
    for word in words:
        axis, _, value = word.partition("=")
        if axis not in matrix.axes:
            raise SpecError(f"--only {word}: no axis {axis!r}", f"use one of {', '.join(matrix.axes)}")
        if value not in map(str, matrix.axes[axis]):
            known = ", ".join(map(str, matrix.axes[axis]))
            raise SpecError(f"--only {word}: {axis} has no {value!r}", f"use one of {known}")
        chosen.setdefault(axis, set()).add(value)

    def is_chosen(cell: Cell) -> bool:
        return all(str(cell.place[axis]) in values for axis, values in chosen.items())

    return Matrix(matrix.name, matrix.axes, [cell for cell in matrix.cells if is_chosen(cell)])


def _list(args: argparse.Namespace, matrix: Matrix, keys: dict[str, str], folder: Path) -> None:
    records = load_records(folder) if (folder / "results.jsonl").is_file() else []
    waiting = {job.key for job in jobs_to_run(matrix, keys, records, args.repeat)}
    rows: list[dict[str, Any]] = [
        {"name": cell.name, "key": keys[cell.name], "runs": keys[cell.name] in waiting}
        for cell in matrix.cells
    ]
    if args.json:
        print(json.dumps({"cells": rows}, indent=2))
        return
    for row in rows:
        print(f"{'runs' if row['runs'] else 'done'}  {row['key'][:16]}  {row['name']}")


def _run_all(jobs: Sequence[Job], pool: Pool, results: Results) -> bool:
    """Whether Ctrl-C ended it."""
    if not jobs:
        return False
    try:
        for _ in progress(run_jobs(jobs, pool, results), len(jobs), "cells"):
            pass
    except KeyboardInterrupt:
        return True
    return False


def _write_pages(args: argparse.Namespace, matrix: Matrix, judged: list[Judged], folder: Path) -> None:
    from casemate.matrix.page import render_page

    write_whole(folder / "matrix.html", render_page(matrix, judged).encode(), "writing the page")
    if args.junit:
        write_whole(args.junit, to_junit(matrix, judged), f"--junit {args.junit}")
    if args.markdown:
        write_whole(args.markdown, to_markdown(matrix, judged).encode(), f"--markdown {args.markdown}")


def _tell(args: argparse.Namespace, judged: list[Judged], ran: int, folder: Path) -> None:
    counts = Counter(each.verdict for each in judged)
    if args.json:
        document = {
            "cells": [_to_json(each) for each in judged],
            "counts": {str(verdict): counts[verdict] for verdict in Verdict},
            "ran": ran,
            "folder": str(folder),
        }
        print(json.dumps(document, indent=2))
        return
    for each in judged:
        if each.verdict is Verdict.GOOD and not each.changes and not each.is_flaky:
            continue
        outcome = each.record.result["outcome"] if each.record else ""
        word = coloured(f"{each.verdict:9}", _COLOURS[each.verdict], sys.stdout)
        print(f"{word} {each.cell.name}: {outcome}")
        for reason in each.reasons:
            print(f"          {printable(reason)}")
        for change in each.changes:
            print(f"          changed: {printable(change)}")
        if each.is_flaky:
            print("          flaky: repetitions ended differently")
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    print(f"{len(judged)} cells: {told}; {ran} ran now; {folder / 'matrix.html'}")


def _to_json(judged: Judged) -> dict[str, Any]:
    record = judged.record
    return {
        "name": judged.cell.name,
        "place": judged.cell.place,
        "verdict": str(judged.verdict),
        "reasons": list(judged.reasons),
        "changes": list(judged.changes),
        "flaky": judged.is_flaky,
        "key": record.key if record else None,
        "result": record.result if record else None,
        "artefacts": [f"{record.folder}/{name}" for name in record.artefacts] if record else [],
    }
