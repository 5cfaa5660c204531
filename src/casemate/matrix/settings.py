"""What a cell of a matrix can be told: every setting with its type and default (docs/guide/matrix.md)."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kernel_eras import ERAS
from casemate.confidential.setup import InitRequest
from casemate.errors import SpecError
from casemate.machine.spec import BoardName
from casemate.memory.protection import Requested

WORKS = ("boot", "measure", "lint", "conform", "prove", "power-cuts", "fuzz")
"""``conform`` boots as ``boot`` does, and judges the VMM by what it did."""
FILES = ("code", "variables", "bios", "kernel", "initrd")
"""Settings that name files, whose contents are a cell's inputs."""
DEFAULTS: dict[str, Any] = {"work": ["boot"], "kind": "plain", "era": ERAS[-1], "timeout": 120}

_UNITS = {"K": 10, "M": 20, "G": 30}


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that is not known: the one that was meant, or all there are."""
    names = [str(each) for each in known]
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(names) or 'none'}"


def _one_of(words: Iterable[str]) -> Callable[[Any], str]:
    known = [str(word) for word in words]

    def check(value: Any) -> str:
        if value not in known:
            raise ValueError(nearest(str(value), known))
        return str(value)

    return check


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("it must be text")


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("it must be a list of texts")
    return value


def _works(value: Any) -> list[str]:
    for each in _texts([value] if isinstance(value, str) else value):
        _one_of(WORKS)(each)
    return [value] if isinstance(value, str) else value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 86_400:
        raise ValueError("it must be a number of seconds, over 0 and up to 86400")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("it must be a number, 0 or more")
    return value


def _positive(value: Any) -> int:
    if not _count(value):
        raise ValueError("it must be a number, 1 or more")
    return int(value)


def _command(value: Any) -> list[str]:
    return [os.path.expanduser(word) if word.startswith("~/") else word for word in _texts(value)]


def _yes(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def _size(value: Any) -> str:
    text = _text(value)
    if not text[:-1].isdecimal() or text[-1].upper() not in _UNITS:
        raise ValueError("it must be a size such as '256M'")
    return text


def _path(value: Any) -> str:
    if not _text(value) or "\0" in value:
        raise ValueError("it must be the path of a file")
    return os.path.expanduser(_text(value))


SETTINGS: dict[str, Callable[[Any], Any]] = {
    "work": _works,
    **dict.fromkeys(FILES, _path),
    "append": _text,
    "kind": _one_of(GuestKind),
    "era": _one_of(ERAS),
    "protection": _one_of(get_args(Requested)),
    "features": _texts,
    "init": _one_of(get_args(InitRequest)),
    "policy": _count,
    "vcpus": _count,
    "vcpu-type": _text,
    "memory": _size,
    "machine": _one_of(get_args(BoardName)),
    "cpu": _text,
    "until": _text,
    "typed": _texts,
    "prompt": _text,
    "timeout": _seconds,
    "watchdog": _seconds,
    "launch-only": _yes,
    "kernel-hashes": _yes,
    "command": _command,
    "vmm": _command,
    "cuts": _positive,
    "fuzz": _text,
    "fuzz-seconds": _seconds,
}
"""Checks by name; they return the value, or raise ValueError with what it must be."""


def check_settings(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of one table. Raises SpecError for an unknown name and for a value of another type."""
    found = {}
    for name, value in table.items():
        if name not in SETTINGS:
            raise SpecError(f"{where}: unknown setting {name!r}", nearest(name, SETTINGS))
        try:
            found[name] = SETTINGS[name](value)
        except ValueError as error:
            raise SpecError(f"{where}: {name} = {value!r}", str(error)) from None
    return found


def absolute(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same with files that are found from ``folder``."""
    return {name: str(folder / value) if name in FILES else value for name, value in settings.items()}


def bytes_of(size: str) -> int:
    """Bytes of a size such as ``256M``."""
    return int(size[:-1]) << _UNITS[size[-1].upper()]
