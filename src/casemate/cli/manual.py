"""``casemate manual``: manual pages made from the parsers (man-pages(7), groff_man(7))."""

from __future__ import annotations

import argparse
from pathlib import Path

from casemate.cli.parser import HelpAll, make_parser
from casemate.cli.parser_tree import CommandPage, walk_commands
from casemate.errors import HostError
from casemate.version import __version__

EPILOG = """\
examples:
  casemate manual ~/.local/share/man/man1       casemate(1), casemate-boot(1), casemate-vars-set(1), ...
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where the pages go; made if need be")


def run(args: argparse.Namespace) -> int:
    """Write the pages; 0."""
    pages = list(walk_commands(make_parser()))
    names = ["-".join(page.words) for page in pages]
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        for page, name in zip(pages, names, strict=True):
            (args.folder / f"{name}.1").write_text(page_text(page, names), "utf-8")
    except OSError as error:
        raise HostError(
            "write", error.errno or 0, str(args.folder), "choose a folder you may write to"
        ) from None
    return 0


def page_text(page: CommandPage, names: list[str]) -> str:
    """One page, in roff."""

    name, description = "-".join(page.words), page.parser.description or ""
    usage = page.parser.format_usage().removeprefix("usage: ").strip()
    short = description.rstrip(".")
    lines = [
        f'.TH {name.upper()} 1 "" "casemate {__version__}"',
        ".SH NAME",
        f"{_escape(name)} \\- {_escape(short[:1].lower() + short[1:])}",
        ".SH SYNOPSIS",
        ".nf",
        *_lines(usage),
        ".fi",
        ".SH DESCRIPTION",
        _escape(description),
    ]
    for word, words in page.below.items():
        lines += [".TP", f".B {_escape(word)}", _escape(words)]
    lines.append(".SH OPTIONS")
    for action in page.options:
        lines += [".TP", f".B {_breakable(_signature(action))}", _escape(_help(page, action))]
    all_examples = (action.examples for action in page.options if isinstance(action, HelpAll))
    if examples := next(all_examples, page.parser.epilog):
        lines += [".SH NOTES", ".nf", *_lines(examples), ".fi"]
    others = ", ".join(f"{_escape(other)}(1)" for other in names if other != name)
    return "\n".join([*lines, ".SH SEE ALSO", others]) + "\n"


def _signature(action: argparse.Action) -> str:
    value = (
        ""
        if action.nargs == 0
        else f" {action.metavar or '|'.join(map(str, action.choices or ())) or action.dest.upper()}"
    )
    return ", ".join(action.option_strings) + value


def _help(page: CommandPage, action: argparse.Action) -> str:
    formatter = page.parser._get_formatter()
    return formatter._expand_help(action) if action.help else ""


def _lines(text: str) -> list[str]:
    return [_escape(line) for line in text.splitlines()]


def _breakable(signature: str) -> str:
    # Many choices are wider than a page.
    return _escape(signature).replace("|", "|\\:")


def _escape(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
