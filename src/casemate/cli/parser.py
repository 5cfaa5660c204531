"""The command line as one parser: what help, completion, manuals and odd lines need (Python's argparse)."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

from casemate.version import __version__

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Command(Protocol):
    """What each module of this package offers."""

    EPILOG: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare options."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


COMMANDS = {
    "boot": "boot firmware from protected flash or as --bios, and say what happened",
    "measure": "predict the launch digest of a confidential guest",
    "verify": "say whether an SNP guest's attestation report can be believed",
    "diff": "say in which step two launches part, and why",
    "explain": "say why a launch digest is not the expected one",
    "inspect": "say what firmware images are good for",
    "session": "check a SEV platform, and make a launch session for it",
    "secret": "seal a secret for a guest that measured as expected",
    "lint": "say what is wrong with a QEMU command line or a libvirt domain",
    "triage": "say what messages about a failed launch mean",
    "vars": "show, change, check and repair variable stores",
    "prove": "prove write protection here, by guests that attack it",
    "kvm": "run another VMM, whose KVM is the modelled host",
    "matrix": "ask one question of many combinations of firmware, guest and kernel",
    "conform": "say which rules about launch and protection a VMM keeps",
    "caps": "say what this machine's KVM offers each kind of guest",
    "completion": "print shell completion",
    "manual": "write manual pages",
}

MORE = "more"
"""How the titles of those groups begin whose options only ``--help-all`` shows."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """All of the help, as wide as the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=terminal_width() - 2)


class BriefHelpFormatter(HelpFormatter):
    """Help without the groups that begin with ``MORE``."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._heading: str | None = None

    def start_section(self, heading: str | None) -> None:
        """argparse's: a group begins."""
        self._heading = heading
        super().start_section(heading)

    def add_arguments(self, actions: Iterable[argparse.Action]) -> None:
        """argparse's: the options of the group that began."""
        if self._heading is None or not self._heading.startswith(MORE):
            super().add_arguments(actions)


class HelpAll(argparse.Action):
    """``--help-all``: prints the help with every group, and with all examples."""

    def __init__(self, option_strings: Sequence[str], dest: str, examples: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)
        self.examples = examples

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """argparse's: the option was given."""
        parser.formatter_class = HelpFormatter
        parser.epilog = self.examples
        parser.print_help()
        parser.exit()


class CommandParser(argparse.ArgumentParser):
    """argparse's parser, but help that cannot be written is an error."""

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Write the help. Raises OSError."""
        (file or sys.stdout).write(self.format_help())


def terminal_width() -> int:
    """Columns: what COLUMNS says, else what the terminal says, else 80."""
    try:
        return int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size().columns or 80
    except (ValueError, OSError):
        return 80


def load_command(name: str) -> Command:
    """The module of one subcommand."""
    return cast(Command, importlib.import_module(f"casemate.cli.{name}"))


def make_parser(names: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of all commands, with the options of those in ``names``."""
    parser = CommandParser(
        prog="casemate",
        description="A virtual machine monitor for guest firmware.",
        formatter_class=HelpFormatter,
        epilog="exit codes: 0 success, 1 the guest misbehaved, or a check says no, 2 usage, 3 refused as insecure,"
        " 4 bad input, 5 this host cannot, 6 internal error, 7 timed out, 130 Ctrl-C, 143 SIGTERM",
    )
    parser.add_argument("--version", action="version", version=f"casemate {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, words in COMMANDS.items():
        sub = commands.add_parser(name, help=words, **_description(name))
        if name in names:
            _fill(sub, name)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The values of a command line. Raises SystemExit with the usage of the command that was named, if it is wrong."""
    if arguments and (name := arguments[0]) in COMMANDS:
        # Who asks for one thing does not wait for the parsers of all others.
        parser: argparse.ArgumentParser = CommandParser(f"casemate {name}", **_description(name))
        _fill(parser, name)
        args, unknown = parser.parse_known_args(arguments[1:], argparse.Namespace(command=name))
    else:
        parser = make_parser(())
        args, unknown = parser.parse_known_args(arguments or ["--help"])
    if unknown:
        _named_parser(parser, arguments).error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _description(name: str) -> dict[str, Any]:
    words = COMMANDS[name]
    return {"description": f"{words[0].upper()}{words[1:]}.", "formatter_class": HelpFormatter}


def _fill(parser: argparse.ArgumentParser, name: str) -> None:
    command = load_command(name)
    parser.epilog = command.EPILOG
    command.add_arguments(parser)


def _named_parser(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.ArgumentParser:
    for word in arguments:
        groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parser = next((group.choices[word] for group in groups if word in group.choices), parser)
    return parser
