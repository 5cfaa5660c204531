"""The parsers of all commands as plain data, for completion and manual pages (Python's argparse)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple


class CommandPage(NamedTuple):
    """One command: its words (``casemate vars set``), its parser, and the commands below it by name."""

    words: tuple[str, ...]
    parser: argparse.ArgumentParser
    below: dict[str, str]
    """Names, and what each says about itself."""

    @property
    def options(self) -> list[argparse.Action]:
        """Everything that begins with a dash and is shown in the help."""
        return [
            action
            for action in self.parser._actions
            if action.option_strings and action.help != argparse.SUPPRESS
        ]


def walk_commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ("casemate",)
) -> Iterator[CommandPage]:
    """The command of ``parser``, and all below it."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    help_of = {choice.dest: choice.help or "" for group in groups for choice in group._choices_actions}
    yield CommandPage(words, parser, help_of)
    for group in groups:
        for name, sub in group.choices.items():
            yield from walk_commands(sub, (*words, name))
