"""``python -m benches [name ...]``: run benches and print their tables (./dev bench)."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

from benches import checkouts
from benches.console import RunError
from benches.table import Table
from casemate.errors import CasemateError

BENCHES = [
    name
    for name in (
        "imports",
        "checks",
        "measure",
        "cpu",
        "boot",
        "confidential",
        "linux",
        "kvm",
        "vmm",
        "evidence",
        "sandbox",
        "matrix",
    )
    if find_spec(f"benches.{name}")
]


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benches", description="Time casemate beside others.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)} (all)")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of each (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FOLDER",
        help="instead: boots by this checkout and by that one, in turn",
    )
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in BENCHES]:
        parser.error(f"no bench {unknown[0]!r}; there are {', '.join(BENCHES)}")
    found: list[Table] = []
    try:
        for name in () if args.against else args.names or BENCHES:
            tables: list[Table] = importlib.import_module(f"benches.{name}").tables(args.runs)
            found += tables
            if not args.json:
                print(*tables, sep="\n\n", end="\n\n", flush=True)
        if args.against:
            found += checkouts.tables(args.runs, args.against.resolve())
            if not args.json:
                print(*found, sep="\n\n")
    except (CasemateError, RunError) as error:
        print(f"benches: error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([table.to_json() for table in found], indent=2))
    return 0


raise SystemExit(main())
