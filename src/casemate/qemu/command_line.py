"""QEMU's options, each taken apart and with its place (QEMU docs/system/invocation; util/qemu-option.c)."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from casemate.errors import SpecError
from casemate.qemu.releases import takes_value
from casemate.qemu.shell import Word

_ON = ("on", "yes", "true", "y")
_NUMBER = re.compile(r"[+-]?(?:(0[xX][0-9a-fA-F]{1,40})|(0[0-7]{0,60})|[1-9][0-9]{0,40})")
_LEAST_TEXT = 60
MOST_OPTIONS = 2000
"""More has no guest; libvirt gives a large one about 300."""
MOST_FIELDS = 500
"""Properties of one option; no object of QEMU's has a tenth."""


class Option(NamedTuple):
    """One option: its spelling, its ``a=b,c=d`` taken apart, and where it stands."""

    name: str
    value: str
    fields: dict[str, str]
    word: Word = Word("")
    """The value, or the option where it has none."""
    starts: dict[str, int] = {}  # noqa: RUF012  (a NamedTuple's default, never written to)
    """Where in the value each field begins."""

    def __str__(self) -> str:
        return f"{self.name} {self.value}".strip()

    def at(self, field: str) -> Option:
        """The same option, its place that of one field."""
        start = self.starts.get(field)
        if start is None or not self.word.is_plain or not self.word.line:
            return self
        return self._replace(word=self.word._replace(column=self.word.column + start))

    @property
    def is_unknown(self) -> bool:
        """Whether a variable that nobody knows is in it, which may bring any field."""
        return bool(self.word.unknown)

    def is_known(self, field: str) -> bool:
        """Whether this field is given, without a variable that nobody knows."""
        value = self.fields.get(field)
        return value is not None and not any(spelling in value for spelling in self.word.unknown)

    def has(self, name: str) -> bool:
        """Whether this switch is on."""
        return self.fields.get(name, "off") in _ON

    def number(self, name: str) -> int | None:
        """A number as C reads it, None if it is missing or not known. Raises ValueError if it is none."""
        if not self.is_known(name):
            return None
        match = _NUMBER.fullmatch(self.fields[name])
        if match is None:
            raise ValueError(f"{self.fields[name]!r} is no number")
        return int(match[0], 16 if match[1] else 8 if match[2] else 10)


def as_words(words: Sequence[str | Word]) -> list[Word]:
    """Words without a place, from texts."""
    return [word if isinstance(word, Word) else Word(word) for word in words]


def options_of(words: Sequence[str | Word]) -> Iterator[Option]:
    """The options of a command line, with or without the program.

    A word where an option should be becomes an option without name: a disk image, or a variable that nobody knows.
    Raises SpecError if an option lacks its value.
    """
    rest = deque(as_words(words))
    if len(rest) > 2 * MOST_OPTIONS:
        raise SpecError(f"over {2 * MOST_OPTIONS} words are no command line", "give one guest")
    is_first = True
    while rest:
        word = rest.popleft()
        is_program, is_first = is_first, False
        if not word.text.startswith("-") or word.text == "-":
            if not is_program:
                yield Option("", word.text, {}, word)
            continue
        name = word.text[1:] if word.text.startswith("--") else word.text
        has_value = takes_value(name)
        if has_value is None:  # one that nobody knows may have one
            has_value = bool(rest) and not rest[0].text.startswith("-")
        if not has_value:
            yield Option(name, "", {}, word)
        elif rest:
            yield _option(name, rest.popleft())
        else:
            raise SpecError(f"QEMU's {name} needs a value", "complete the command line")


def _option(name: str, value: Word) -> Option:
    if value.text.count(",") > MOST_FIELDS and not value.text.startswith("{"):
        raise SpecError(f"QEMU's {name} has over {MOST_FIELDS} properties", "give one guest")
    try:
        fields, starts = parse_fields(value.text)
    except (ValueError, RecursionError) as error:
        shown = value.text if len(value.text) <= _LEAST_TEXT else f"{value.text[:_LEAST_TEXT]}..."
        raise SpecError(f"QEMU's {name} {shown}: no JSON: {error}", "quote it for the shell") from None
    if "" in fields:
        first = "qom-type" if name == "-object" else "driver" if name in ("-device", "-blockdev") else "type"
        fields[first], starts[first] = fields.pop(""), starts.pop("")
    return Option(name, value.text, fields, value, starts)


def parse_fields(value: str, first: str = "") -> tuple[dict[str, str], dict[str, int]]:
    """``a=b,c=d`` or JSON as names and values, and where each begins.

    A doubled comma is a comma; what comes first may lack its name, and gets the name ``first``. Raises ValueError
    for broken JSON.
    """
    if value.startswith("{"):
        found = _flatten(json.loads(value))
        if len(found) > MOST_FIELDS:
            raise ValueError(f"over {MOST_FIELDS} values")
        return found, {}
    fields, starts = {}, {}
    at = 0
    for index, text in enumerate(value.replace(",,", "\0").split(",")):
        name, separator, rest = text.partition("=")
        if not separator:
            name, rest = (first, name) if index == 0 else (name, "on")
        name = name.replace("\0", ",")
        fields[name], starts[name] = rest.replace("\0", ","), at
        at += len(text) + text.count("\0") + 1
    return fields, starts


def _flatten(document: object) -> dict[str, str]:
    """Nested JSON with dots between the names; the hands of a stack, for JSON nests deeper than Python calls."""
    found: dict[str, str] = {}
    stack: list[tuple[str, object]] = [("", document)]
    while stack:
        prefix, value = stack.pop()
        if isinstance(value, dict):
            dot = f"{prefix}." if prefix else ""
            stack += [(f"{dot}{name}", inner) for name, inner in reversed(value.items())]
        elif isinstance(value, bool):
            found[prefix] = "on" if value else "off"
        else:
            found[prefix] = str(value)
    return found
