"""The firmware of ``casemate boot`` where no option names it, and the variables that are kept (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from casemate.api.firmware import find_firmware
from casemate.api.variables import lead_to_shell
from casemate.cli.state_folder import state_folder
from casemate.devices.flash.file import copy_template
from casemate.errors import HostError, SpecError


def installed_flash(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """Code and variables: the newest installed pair, and variables from its template. Raises UnsupportedError."""
    pair = find_firmware(args.guest)
    if args.verbose:
        print(f"casemate: firmware: {pair.why}", file=sys.stderr)
        for reason in pair.skipped:
            print(f"casemate: passed over: {reason}", file=sys.stderr)
    template = args.vars_template or pair.vars_template
    variables = args.vars
    if template is not None:
        if variables is None:
            variables = _kept_variables(args, pair.code)
            _copy_once(template, variables)
            lead_to_shell(pair.code, variables)
        else:
            _copy_once(template, variables)
    return pair.code, variables


def flash_from_template(args: argparse.Namespace) -> tuple[Path, Path]:
    """The code that was named, and variables from the template that was. Raises SpecError where there is no flash."""
    if args.code is None:
        raise SpecError("--vars-template: there is no flash", "leave it out, or use --code")
    variables: Path = args.vars or _kept_variables(args, args.code)
    _copy_once(args.vars_template, variables)
    return args.code, variables


def _kept_variables(args: argparse.Namespace, code: Path) -> Path:
    name: str = args.name
    if not args.name or "/" in args.name or args.name.startswith("."):
        raise SpecError(
            f"--name {args.name!r} cannot be the name of a folder", "use letters, digits and dashes"
        )
    return state_folder() / name / f"{code.stem}.vars.fd"


def _copy_once(template: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            "mkdir", error.errno or 0, str(target.parent), "name a place for the variables with --vars"
        ) from error
    copy_template(template, target)
