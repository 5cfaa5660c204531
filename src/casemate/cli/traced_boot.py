"""Boots as ``casemate boot`` does, and notes the steps of its VMM in a file (docs/guide/conform.md).

python -m casemate.cli.traced_boot FILE [BOOT OPTION ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from casemate.cli import boot, exit_code_of
from casemate.cli.parser import parse
from casemate.evidence.traced_host import HostTracer


def main(path: str, *words: str) -> int:
    """The exit code that ``casemate boot`` would have."""
    with Path(path).open("w", encoding="utf-8") as copy:
        tracer = HostTracer(copy)

        def run() -> int:
            args = parse(["boot", *words])
            args.command_line, args.own_process = ["casemate", "boot", *words], False
            return boot.run_on(args, tracer.around)

        return exit_code_of(run)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
