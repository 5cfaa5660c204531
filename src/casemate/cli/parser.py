"""The command line as one parser: what help, completion, manuals and odd lines need (Python's argparse)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from casemate import __version__
from casemate.cli import COMMANDS, load_command


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal; argparse's own way to ask for that loads modules of compression."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=terminal_width() - 2)


def terminal_width() -> int:
    """Columns: what COLUMNS says, else what the terminal says, else 80."""
    try:
        return int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size().columns
    except (ValueError, OSError):
        return 80


def make_parser(names: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser with the options of the subcommands in ``names``; the others are known by name only."""
    parser = argparse.ArgumentParser(
        prog="casemate",
        description="A virtual machine monitor for guest firmware.",
        formatter_class=HelpFormatter,
        epilog="exit codes: 0 success, 1 the guest misbehaved, or a check says no, 2 usage, 3 refused as insecure,"
        " 4 bad input, 5 this host cannot, 6 internal error, 7 timed out, 130 Ctrl-C, 143 SIGTERM",
    )
    parser.add_argument("--version", action="version", version=f"casemate {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, words in COMMANDS.items():
        command = load_command(name) if name in names else None
        sub = commands.add_parser(
            name,
            help=words,
            description=f"{words[0].upper()}{words[1:]}.",
            epilog=command.EPILOG if command else None,
            formatter_class=HelpFormatter,
        )
        if command:
            command.add_arguments(sub)
    return parser
