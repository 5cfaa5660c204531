"""The ``casemate`` command: one module per subcommand, imported when it is called (docs/guide)."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING, Protocol, cast

from casemate import __version__
from casemate.errors import CasemateError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "boot": "boot firmware from protected flash or as --bios, and say what happened",
    "measure": "predict the launch digest of a SEV or SEV-ES guest",
    "diff": "say in which step two launches part, and why",
    "explain": "say why a launch digest is not the expected one",
    "inspect": "say what firmware images are good for",
    "lint": "say what is wrong with a QEMU command line or a libvirt domain",
    "vars": "show, change, check and repair variable stores",
    "prove": "prove write protection here, by guests that attack it",
    "caps": "say what this machine's KVM offers each kind of guest",
    "completion": "print shell completion",
    "manual": "write manual pages",
}


class Command(Protocol):
    """What each module of this package offers."""

    EPILOG: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare options."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


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


def load_command(name: str) -> Command:
    """The module of one subcommand."""
    return cast(Command, importlib.import_module(f"casemate.cli.{name}"))


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Every error is one line on standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    named = [word for word in arguments if word in COMMANDS][:1]
    args = make_parser(named).parse_args(arguments)
    args.command_line = ["casemate", *arguments]
    try:
        return load_command(args.command).run(args)
    except CasemateError as error:
        print(f"casemate: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        print(f"casemate: internal error: {type(error).__name__}: {error}; please report it", file=sys.stderr)
        return 6
