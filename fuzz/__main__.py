"""``python -m fuzz [TARGET ...]``: list the targets, or try hostile input on some (./dev fuzz)."""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from fuzz import runs, target
from fuzz.runs import Limits, Run
from fuzz.target import NAMES, TALLY, Target

EXAMPLES = """examples:
  ./dev fuzz                                         say what there is
  ./dev fuzz flash --seconds 60                      a minute of flash commands
  ./dev fuzz guests qmp --seed 7 --json              two targets, one JSON document
  ./dev fuzz images --engine atheris --seconds 600   guided by coverage (pip install -e '.[fuzz]')
  ./dev fuzz flash --input fuzz-findings/flash-1-20.bin   a finding once more

exit codes: 0 nothing found, 1 a finding (its file is named), 2 usage, 5 something is not installed
"""


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz",
        description="Try hostile input on casemate, in child processes with limits of time and memory.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=float, default=60, metavar="N", help="for each (%(default)s)")
    parser.add_argument("--inputs", type=int, metavar="N", help="try so many of each, however long it takes")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the inputs (%(default)s)")
    parser.add_argument(
        "--engine", choices=("hypothesis", "atheris"), default="hypothesis", help="(%(default)s)"
    )
    parser.add_argument("--input", type=Path, metavar="FILE", help="try this one input, a finding's file")
    parser.add_argument(
        "--findings", type=Path, default=Path("fuzz-findings"), metavar="FOLDER", help="(%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in NAMES]:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(NAMES)}")
    if args.input and len(args.names) != 1:
        parser.error("--input is of one target: name it")
    if args.inputs is not None and args.engine == "atheris":
        parser.error("--inputs is for the engine hypothesis: give --seconds")
    if args.engine == "atheris" and find_spec("atheris") is None:
        print("fuzz: error: atheris is not installed: pip install -e '.[fuzz]'", file=sys.stderr)
        return 5
    if not args.names:
        return _list(as_json=args.json)
    chosen = [target.load(name) for name in args.names]
    if lacking := [f"{each.name}: {each.missing()}" for each in chosen if each.missing()]:
        print(f"fuzz: error: {'; '.join(lacking)}", file=sys.stderr)
        return 5
    if args.input:
        return _again(parser, chosen[0], args.input)
    done = []
    for each in chosen:
        done.append(_run(each, args))
        if not args.json:
            _print(done[-1])
    if args.json:
        print(json.dumps([run.to_json() for run in done], indent=2))
    return 1 if any(run.findings for run in done) else 0


def _list(*, as_json: bool) -> int:
    found = [target.load(name) for name in NAMES]
    if as_json:
        rows = [{"target": each.name, "about": each.about, "unit": each.unit} for each in found]
        print(json.dumps(rows, indent=2))
    else:
        print("\n".join(f"{each.name:<14}{each.about}" for each in found))
    return 0


def _again(parser: argparse.ArgumentParser, chosen: Target, file: Path) -> int:
    try:
        faults = runs.one_input(chosen, file)
    except OSError as error:
        parser.error(f"--input {file}: {error.strerror}")
    print("\n".join(fault.how for fault in faults) or f"{file}: answered as it must be")
    return 1 if faults else 0


def _run(chosen: Target, args: argparse.Namespace) -> Run:
    if args.engine == "atheris":
        return runs.guided(chosen, args.seed, args.seconds, args.findings)
    start = time.monotonic()

    def progress() -> None:
        if sys.stderr.isatty():
            _, inputs, _ = TALLY.read()
            passed = time.monotonic() - start
            print(f"\r{chosen.name}: {passed:.0f} s, {inputs} inputs", end="\033[K", file=sys.stderr)

    limits = Limits(seconds=args.seconds) if args.inputs is None else Limits(inputs=args.inputs)
    run = runs.by_seed(chosen, args.seed, limits, args.findings, progress)
    if sys.stderr.isatty():
        print(end="\r\033[K", file=sys.stderr)
    return run


def _print(run: Run) -> None:
    held = "" if run.target.unit == "inputs" else f", {run.units} {run.target.unit}"
    print(
        f"{run.target.name}: {run.inputs} inputs{held} in {run.seconds:.0f} s by {run.engine}, seed {run.seed}: "
        f"{len(run.findings)} findings",
        flush=True,
    )
    for finding in run.findings:
        print(f"\n{finding.how}\n  once more: ./dev fuzz {run.target.name} --input {finding.file}")


if __name__ == "__main__":
    sys.exit(main())
