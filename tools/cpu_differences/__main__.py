"""Compares the modelled processor with QEMU's and with this machine's, by random instructions (docs/design/cpu.md).

    python -m tools.cpu_differences --streams 2000 --seed 1
    python -m tools.cpu_differences --first 1420 --streams 1 --show    one stream again, and all that differs
    python -m tools.cpu_differences --hosts model,qemu --json

A host that cannot run is left out, with its reason. Exit code: 0 every difference is a known one, 1 there are others,
2 usage, 5 fewer than two hosts can run.
"""

from __future__ import annotations

import argparse
import json
import sys

from tools.cpu_differences.hosts import HOSTS, HostError
from tools.cpu_differences.report import Report, available, run


def _number(text: str) -> int:
    value = int(text, 0)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


def _host_names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in HOSTS:
            raise argparse.ArgumentTypeError(f"there is no host {name!r}: choose from {', '.join(HOSTS)}")
    return names


def main() -> int:
    """Run, and print what was seen."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.cpu_differences",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--streams", type=_number, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=_number, default=1, help="of all streams (1)")
    parser.add_argument("--first", type=_number, default=0, help="number of the first stream (0)")
    parser.add_argument("--hosts", type=_host_names, default=list(HOSTS), help=f"of {', '.join(HOSTS)} (all)")
    parser.add_argument("--show", action="store_true", help="known differences one by one, too")
    parser.add_argument("--json", action="store_true", help="one document instead of text")
    options = parser.parse_args()
    hosts, missing = available(options.hosts)
    if len(hosts) < 2:
        for name, reason in missing.items():
            print(f"cpu_differences: {name} cannot run: {reason}", file=sys.stderr)
        print("cpu_differences: error: one host cannot be compared, name others by --hosts", file=sys.stderr)
        return 5
    report = Report(options.seed, hosts, missing)
    try:
        for _ in run(report, options.first, options.streams):
            if sys.stderr.isatty():
                print(f"\r{report.streams} of {options.streams} streams", end="", file=sys.stderr, flush=True)
    except HostError as error:
        print(
            f"cpu_differences: error: stream {options.first + report.streams} or later: {error}",
            file=sys.stderr,
        )
        return 1
    if sys.stderr.isatty():
        print(end="\r\033[K", file=sys.stderr)
    print(json.dumps(report.document(), indent=2) if options.json else report.text(all_of_them=options.show))
    return 1 if report.new else 0


if __name__ == "__main__":
    sys.exit(main())
