"""Makes the table of QEMU's options, objects and machines anew, from the QEMUs in the roots (tools/roots).

    python -m tools.qemu_releases            print the table
    python -m tools.qemu_releases --write    write src/casemate/qemu/releases.json

Entering a root needs to be root; a root that is not there is an error, made by ``./dev roots``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from casemate.cli.ask_qemu import ask_qemu
from casemate.qemu.releases import QemuRelease
from tools.roots.make import cache_folder
from tools.roots.recipes import SUITES

TABLE = Path(__file__).parents[1] / "src" / "casemate" / "qemu" / "releases.json"


class NoRootError(Exception):
    """A root that is asked is not there."""


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each root with a QEMU in it, and the command that starts it there."""
    for suite in SUITES:
        tree = cache_folder() / f"{suite}-full" / "tree"
        if os.geteuid() == 0 and (tree / "usr/bin/qemu-system-x86_64").exists():
            yield suite, ["chroot", str(tree), "qemu-system-x86_64"]


def releases() -> list[QemuRelease]:
    """What each of them says."""
    return sorted((ask_qemu(command) for _, command in commands()), key=lambda release: release.version)


def make_table(description: str | None, table: Path, make: Callable[[], str]) -> int:
    """Print what ``make`` returns, or write it to ``table``; the exit code. NoRootError of it is told."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    try:
        text = make()
    except NoRootError as error:
        print(f"{error.args[0]}: run as root, after ./dev roots", file=sys.stderr)
        return 1
    if args.write:
        table.write_text(text)
    else:
        print(text, end="")
    return 0


def _make() -> str:
    found = releases()
    if len(found) < len(SUITES):
        raise NoRootError("not every root has a QEMU")
    return json.dumps([release.to_dict() for release in found], indent=0) + "\n"


if __name__ == "__main__":
    sys.exit(make_table(__doc__, TABLE, _make))
