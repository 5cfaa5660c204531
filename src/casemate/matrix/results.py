"""Results that are there, as lines of JSON in a folder with artefacts beside them (docs/guide/matrix.md)."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from casemate.errors import HostError, SpecError

LINES = "results.jsonl"
_KEY_SHOWN = 16


@dataclass(frozen=True, slots=True)
class Record:
    """One line: which cell, its key, which of its repetitions, when it ended (seconds since 1970), and its result."""

    name: str
    key: str
    round: int
    when: float
    result: dict[str, Any]
    artefacts: tuple[str, ...] = ()
    """Names of files in ``folder_of`` this record."""

    @property
    def is_final(self) -> bool:
        """Whether the cell need not run again: it did not end because a process died."""
        return self.result["outcome"] not in ("crashed", "internal-error")

    @property
    def folder(self) -> str:
        """Where its artefacts are, below the results."""
        return f"cells/{self.key[:_KEY_SHOWN]}-{self.round}"


class Results:
    """The folder of a matrix, held by one run at a time. Lines are only ever added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / LINES
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpecError(
                f"{path}: another run uses it", "wait for it, or name a folder with --out"
            ) from None
        except OSError as error:
            raise HostError("open", error.errno or 0, str(path), "name a folder with --out") from None
        self.records = _read(path)
        self._file.seek(0, os.SEEK_END)
        if self._file.tell() and not path.read_bytes().endswith(b"\n"):
            self._file.write(b"\n")  # the run before was killed within a line

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, record: Record, artefacts: Mapping[str, str]) -> None:
        """Keep a result: artefacts first, so that a line is never without them. Raises HostError."""
        try:
            if artefacts:
                folder = self.folder / record.folder
                folder.mkdir(parents=True, exist_ok=True)
                for name, text in artefacts.items():
                    (folder / Path(name).name).write_text(text, "utf-8", "replace")
            line = {
                "name": record.name,
                "key": record.key,
                "round": record.round,
                "when": record.when,
                "result": record.result,
                "artefacts": list(artefacts),
            }
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise HostError("write", error.errno or 0, str(self.folder), "make room there") from None
        self.records.append(record)


def load_records(folder: Path) -> list[Record]:
    """The results of another folder. Raises SpecError if it has none."""
    path = folder / LINES
    if not path.is_file():
        raise SpecError(f"{folder}: there is no {LINES}", "name the folder of an earlier run")
    return _read(path)


def _read(path: Path) -> list[Record]:
    """Lines that are none, as a run leaves that was killed within one, are passed over: their cells run again."""
    found = []
    for line in path.read_bytes().splitlines():
        try:
            each = json.loads(line)
            record = Record(
                str(each["name"]),
                str(each["key"]),
                int(each["round"]),
                float(each["when"]),
                dict(each["result"]),
                tuple(map(str, each["artefacts"])),
            )
            str(record.result["outcome"])
        except (ValueError, KeyError, TypeError):
            continue
        found.append(record)
    return found
