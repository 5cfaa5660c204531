"""Every example in the help texts and in the guide is a line that its command takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from casemate.cli.parser import COMMANDS, make_parser
from casemate.cli.parser_tree import walk_commands

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
CONTINUED = re.compile(r"\s*\\\n\s*")
COMMENT = re.compile(r"\s{2,}.*$")
END = {"|", "&&", ">"}


def lines_of(text: str) -> Iterator[str]:
    """Lines that begin with the command's name and leave nothing out, without the comment behind them."""
    for line in CONTINUED.sub(" ", text).splitlines():
        command = COMMENT.sub("", line.strip().removeprefix("$ "))
        if command.startswith("casemate ") and "..." not in command.split():
            yield command


def examples() -> Iterator[tuple[str, str]]:
    """Where a line stands, and the line."""
    for page in walk_commands(make_parser()):
        for line in lines_of(page.parser.epilog or ""):
            yield " ".join(page.words), line
    for path in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            for line in lines_of(block):
                yield path.name, line


@pytest.mark.parametrize(("where", "line"), sorted(set(examples())))
def test_example_is_taken(where: str, line: str) -> None:
    words = takewhile(lambda word: word not in END and not word.startswith(">"), shlex.split(line)[1:])
    try:
        make_parser().parse_args(list(words))
    except SystemExit:
        pytest.fail(f"{where}: {line}")


def test_there_are_examples_of_every_command() -> None:
    shown = {line.split()[1] for _, line in examples()}
    assert shown == set(COMMANDS)
