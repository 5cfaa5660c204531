"""The ``casemate`` command: one module per subcommand, imported when it is called (docs/guide)."""

from __future__ import annotations

import gc
import os
import sys

from casemate.errors import CasemateError
from casemate.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import NoReturn, Protocol

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
    "vars": "show, change, check and repair variable stores",
    "prove": "prove write protection here, by guests that attack it",
    "caps": "say what this machine's KVM offers each kind of guest",
    "completion": "print shell completion",
    "manual": "write manual pages",
}
_ALLOCATIONS = 20_000
"""After so many, garbage is looked for: less often than by default, since loading modules makes none."""


def load_command(name: str) -> Command:
    """The module of one subcommand."""
    module: Command = __import__(f"casemate.cli.{name}", fromlist=("run",))
    return module


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Every error is one line on standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args, command = read_command(arguments)
    args.command_line = ["casemate", *arguments]
    try:
        return command.run(args)
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


def read_command(arguments: Sequence[str]) -> tuple[argparse.Namespace, Command]:
    """What a line asks for, and of which command. Raises SystemExit if it asks for help or cannot be read."""
    named = [word for word in arguments if word in COMMANDS][:1]
    if arguments[:1] == named and (command := load_command(named[0])) and hasattr(command, "OPTIONS"):
        from casemate.cli.options import read_options

        args = read_options(command.OPTIONS, arguments[1:])
        if args is not None:
            return args, command

    from casemate.cli.parser import make_parser

    args = make_parser(named).parse_args(arguments)
    return args, load_command(args.command)


def start() -> NoReturn:
    """The process ``casemate``; it leaves once all is written: tearing an interpreter down takes milliseconds."""
    gc.set_threshold(_ALLOCATIONS)
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads any more, or closed by main
        code = code or 1
    os._exit(code)
