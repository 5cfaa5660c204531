"""The words of a shell script, each with its place, variables expanded (POSIX.1-2017 Shell Command Language, 2).

Nothing is run. A variable that the text does not set, or sets under a condition, is unknown: its spelling stays in
the word, and the word says so.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from casemate.errors import SpecError

LONGEST_TEXT = 2 << 20
"""Characters; Linux gives no process a longer command line (execve(2))."""
_PLAIN = re.compile(r"[^\s\\'\"$`;&|<>()]+")
_DOUBLE = re.compile(r"[^\\\"$`]+")
_REFERENCE = re.compile(r"\{([A-Za-z_]\w*|@)(?:\[[@*]\])?(?::?-([^{}$`\"'\\]*))?\}|([A-Za-z_]\w*|@)")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?=)")
_OTHER_SHELLS = re.compile(r"`\r?\n|```[^\n`]*(?=\n|\Z)")
"""A line that goes on in PowerShell, and Markdown's fences around code."""
_OPENERS = frozenset({"if", "for", "while", "until", "case", "select"})
_CLOSERS = frozenset({"fi", "done", "esac"})
_RESERVED = frozenset(
    {"then", "else", "elif", "do", "{", "}", "!", "export", "local", "readonly", "declare", "typeset"}
)


class Word(NamedTuple):
    """One word and where it stands; ``line`` and ``column`` count from 1 and are 0 where there is no file."""

    text: str
    line: int = 0
    column: int = 0
    is_plain: bool = True
    """Whether the file has it letter by letter, so that a place in it is a place in the file."""
    unknown: tuple[str, ...] = ()
    """The variables in it whose values cannot be known, as they are spelled."""


@dataclass(slots=True)
class _Value:
    """What a variable holds: words of an array, or one text."""

    words: list[Word]
    is_array: bool = False


def _maybe_longer(old: _Value | None, unknown: Word, words: list[Word], adds: bool) -> _Value | None:
    """What a variable certainly begins with after a condition under which something may be added to it."""
    if old is None or not old.words:
        return None
    if old.is_array:
        begins = [word.text for word in words[: len(old.words)]] == [word.text for word in old.words]
        return _Value([*old.words, unknown], True) if adds or begins else None
    first = old.words[0]
    if not (adds or (words and words[0].text.startswith(first.text))):
        return None
    joined = Word(f"{first.text} {unknown.text}", unknown=(*first.unknown, *unknown.unknown))
    return _Value([joined])


@dataclass(slots=True)
class _Builder:
    """The word that is being read."""

    start: int = -1
    parts: list[str] = field(default_factory=list)
    is_plain: bool = True
    unknown: list[str] = field(default_factory=list)

    def add(self, text: str, at: int) -> None:
        if self.start < 0:
            self.start = at
        self.parts.append(text)


def words_of_script(
    text: str, start: int = 0, end: int | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[list[Word]]:
    """The simple commands between two places of a text, without assignments; ``variables`` are set before it begins.

    Raises SpecError if the text is longer than any command line, before or after expansion.
    """
    if len(text) > LONGEST_TEXT:
        raise SpecError(f"over {LONGEST_TEXT} characters are no command line", "give one command")
    return _Scanner(text, start, len(text) if end is None else end, variables or {}).commands()


class _Scanner:
    def __init__(self, text: str, start: int, end: int, variables: Mapping[str, str]) -> None:
        self._text, self._at, self._end = text, start, end
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self._variables = {name: _Value([Word(value)]) for name, value in variables.items()}
        self._left = LONGEST_TEXT
        self._word = _Builder()
        self._words: list[Word] = []
        self._depth = 0
        self._is_conditional = False
        self._documents: list[str] = []

    def commands(self) -> Iterator[list[Word]]:
        while self._at < self._end:
            letter = self._text[self._at]
            if letter == "\n" and self._is_continued():
                self._at += 1
            elif letter in "\n;&|()":
                if letter == "(" and self._array():
                    continue
                separator = self._separator()
                yield from self._finish()
                self._is_conditional = separator in ("&&", "||")
            else:
                self._piece(letter)
        yield from self._finish()

    def _is_continued(self) -> bool:
        """Whether the line ends as one does that goes on in cmd.exe (``^``)."""
        self._end_word()
        is_continued = bool(self._words) and self._words[-1].text == "^"
        if is_continued:
            self._words.pop()
        return is_continued

    def _piece(self, letter: str) -> None:
        at = self._at
        if match := _OTHER_SHELLS.match(self._text, at, self._end):
            self._at = match.end()
        elif letter in " \t\r\f\v":
            self._end_word()
            self._at += 1
        elif letter == "\\":
            self._escape()
        elif letter == "'":
            self._single()
        elif letter == '"':
            self._double()
        elif letter in "$`":
            self._expand(quoted=False)
        elif letter in "<>":
            self._redirection()
        elif self._word.start < 0 and self._text.startswith('{"', at) and (end := self._end_of_json(at)):
            # What ps prints: a shell would have needed quotes around it.
            self._word.add(self._text[at:end], at)
            self._at = end
        elif letter == "#" and self._word.start < 0:
            newline = self._text.find("\n", at, self._end)
            self._at = self._end if newline < 0 else newline
        elif match := _PLAIN.match(self._text, at, self._end):
            self._word.add(match[0], at)
            self._at = match.end()
        else:  # white space that ASCII does not have
            self._end_word()
            self._at += 1

    def _end_of_json(self, at: int) -> int:
        """Where JSON ends that begins here, 0 if none does."""
        try:
            return min(json.JSONDecoder().raw_decode(self._text, at)[1], self._end)
        except (ValueError, RecursionError):
            return 0

    def _place(self, at: int) -> tuple[int, int]:
        line = bisect_right(self._lines, at)
        return line, at - self._lines[line - 1] + 1

    def _end_word(self) -> None:
        word, self._word = self._word, _Builder()
        if word.start >= 0:
            text = "".join(word.parts)
            unknown = tuple(spelling for spelling in word.unknown if spelling in text)
            self._words.append(Word(text, *self._place(word.start), word.is_plain, unknown))

    def _finish(self) -> Iterator[list[Word]]:
        """The command that ends here: assignments are kept, anything else is given out."""
        self._end_word()
        words, self._words = self._words, []
        while words and (words[0].text in _RESERVED or words[0].text in _OPENERS | _CLOSERS):
            self._depth += (words[0].text in _OPENERS) - (words[0].text in _CLOSERS and self._depth > 0)
            words = words[1:]
        while words and (match := _ASSIGNMENT.match(words[0].text)):
            self._assign(
                match[1], match[2] == "+=", [words[0]._replace(text=words[0].text[match.end() :])], False
            )
            words = words[1:]
        if words and words[0].text == "set" and len(words) > 1 and words[1].text == "--":
            self._assign("@", False, words[2:], True)
        elif words:
            yield words

    def _assign(self, name: str, adds: bool, words: list[Word], is_array: bool) -> None:
        old = self._variables.get(name)
        if self._depth or self._is_conditional:
            unknown = Word(f"${name}", unknown=(f"${name}",))
            self._variables[name] = _maybe_longer(old, unknown, words, adds) or _Value([unknown])
        elif adds and old and (is_array or old.is_array):
            self._variables[name] = _Value([*old.words, *words], True)
        elif adds and old:
            first, second = old.words[0], words[0]
            joined = Word(first.text + second.text, unknown=first.unknown + second.unknown)
            self._variables[name] = _Value([joined])
        else:
            self._variables[name] = _Value(words, is_array)

    def _array(self) -> bool:
        """``NAME=(...)`` or ``NAME+=(...)``; whether it was one."""
        match = _ASSIGNMENT.fullmatch("".join(self._word.parts))
        if match is None:
            return False
        outer, self._words, self._word = self._words, [], _Builder()
        self._at += 1
        while self._at < self._end and self._text[self._at] != ")":
            letter = self._text[self._at]
            if letter in "\n;&|(":
                self._end_word()
                self._at += 1
            else:
                self._piece(letter)
        self._end_word()
        self._at += 1
        self._assign(match[1], match[2] == "+=", self._words, True)
        self._words = outer
        return True

    def _separator(self) -> str:
        letter = self._text[self._at]
        double = self._text.startswith(letter * 2, self._at) and letter in "&|;"
        self._at += 2 if double else 1
        if letter == "\n":
            self._skip_documents()
        return letter * 2 if double else letter

    def _skip_documents(self) -> None:
        for mark in self._documents:
            found = re.compile(rf"^\t*{re.escape(mark)}$", re.MULTILINE).search(
                self._text, self._at, self._end
            )
            if found:
                self._at = min(found.end() + 1, self._end)
        self._documents = []

    def _redirection(self) -> None:
        """``>file``, ``2>&1``, ``<<MARK``: no words of the command."""
        if self._word.parts and "".join(self._word.parts).isdecimal():
            self._word = _Builder()
        self._end_word()
        match = re.compile(r"(<<-?|>>|<|>)(&?)[ \t]*").match(self._text, self._at, self._end)
        assert match
        self._at = match.end()
        if self._text.startswith("(", self._at):
            self._skip_parentheses()
            return
        target = re.compile(r"[^\s;&|<>()]*").match(self._text, self._at, self._end)
        assert target
        self._at = target.end()
        if match[1].startswith("<<") and target[0]:
            self._documents.append(target[0].strip("'\"\\"))

    def _escape(self) -> None:
        following = self._text[self._at + 1 : self._at + 2] if self._at + 1 < self._end else ""
        if following == "\n" or self._text.startswith("\r\n", self._at + 1):
            self._at += 2 if following == "\n" else 3
            return
        self._word.add(following, self._at)
        self._word.is_plain = False
        self._at += 2

    def _single(self) -> None:
        close = self._text.find("'", self._at + 1, self._end)
        close = self._end if close < 0 else close
        self._word.add(self._text[self._at + 1 : close], self._at)
        self._word.is_plain = False
        self._at = close + 1

    def _double(self) -> None:
        self._word.add("", self._at)
        self._word.is_plain = False
        self._at += 1
        while self._at < self._end and self._text[self._at] != '"':
            letter = self._text[self._at]
            if letter == "\\":
                following = self._text[self._at + 1 : self._at + 2]
                kept = "" if following == "\n" else following if following in '$`"\\' else letter + following
                self._word.add(kept, self._at)
                self._at += 2
            elif letter in "$`":
                self._expand(quoted=True)
            elif match := _DOUBLE.match(self._text, self._at, self._end):
                self._word.add(match[0], self._at)
                self._at = match.end()
        self._at += 1

    def _expand(self, quoted: bool) -> None:
        start = self._at
        match = _REFERENCE.match(self._text, start + 1, self._end) if self._text[start] == "$" else None
        if match:
            self._at = match.end()
            value = self._variables.get(match[1] or match[3])
            if value is None and match[2] is not None:
                value = _Value([Word(match[2])])
        else:
            value = None
            self._skip_unknown()
        if value is None:
            spelling = self._text[start : self._at]
            value = _Value([Word(spelling, unknown=(spelling,) if len(spelling) > 1 else ())])
        self._word.is_plain = False
        for index, word in enumerate(value.words):
            if index and value.is_array:
                self._end_word()
            self._word.is_plain = False
            self._insert(word, start, quoted)
        if not value.words and quoted:
            self._word.start = -1 if self._word.parts == [""] else self._word.start

    def _insert(self, word: Word, at: int, quoted: bool) -> None:
        self._left -= len(word.text) + 1
        if self._left < 0:
            raise SpecError(f"its variables expand to over {LONGEST_TEXT} characters", "give one command")
        self._word.unknown += word.unknown
        if quoted or word.unknown == (word.text,):
            self._word.add(word.text, at)
            return
        for index, piece in enumerate(re.split(r"[ \t\n]+", word.text)):
            if index:
                self._end_word()
                self._word.unknown += word.unknown
                self._word.is_plain = False
            if piece:
                self._word.add(piece, at)

    def _skip_unknown(self) -> None:
        """``$(...)``, ``${...}``, ``$1``, backquotes: what only a shell could know."""
        if self._text[self._at] == "`":
            close = self._text.find("`", self._at + 1, self._end)
            self._at = self._end if close < 0 else close + 1
            return
        self._at += 1
        if self._text.startswith("(", self._at):
            self._skip_parentheses()
        elif self._text.startswith("{", self._at):
            close = self._text.find("}", self._at, self._end)
            self._at = self._end if close < 0 else close + 1
        elif self._text[self._at : self._at + 1] in tuple("0123456789@*#?!-$"):
            self._at += 1

    def _skip_parentheses(self) -> None:
        depth = 0
        for match in re.compile(r"[()]").finditer(self._text, self._at, self._end):
            depth += 1 if match[0] == "(" else -1
            if not depth:
                self._at = match.end()
                return
        self._at = self._end
