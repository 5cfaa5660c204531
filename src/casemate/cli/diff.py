"""``casemate diff``: says in which step two launches part, and why (docs/guide/diff.md)."""

from __future__ import annotations

import argparse
import json

from casemate.digest.diff import find_difference, parse_launch
from casemate.errors import printable
from casemate.files import read_text

EPILOG = """\
examples:
  casemate measure --json --mode seves ... >a.json
  casemate measure --json --mode seves ... --init legacy >b.json
  casemate diff a.json b.json

exit code: 0 if both give one digest, 1 if they differ, 4 if a file is no launch
"""

_DIFFERENT = 1
_REMEDY = "give the JSON of a launch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two launches."""
    for name in ("first", "second"):
        parser.add_argument(
            name, metavar=name.upper(), help="trace (casemate measure --json) or plan, as JSON"
        )
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Compare, print; 0, or 1 if they differ."""

    files = (args.first, args.second)
    difference = find_difference(*(parse_launch(read_text(file, _REMEDY), file) for file in files))
    if args.json:
        print(json.dumps(difference._asdict() if difference else None, indent=2))
    elif difference is None:
        print("all steps are the same, and so is the digest")
    else:
        names = " against ".join(name or "nothing" for name in (difference.first, difference.second))
        print(f"step {difference.position} is the first that differs: {printable(names)}")
        for cause in difference.causes:
            print(f"    {printable(cause)}")
    return _DIFFERENT if difference else 0
