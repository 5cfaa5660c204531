"""The log of all ioctls, as text like strace's or as JSON lines (docs/guide/kvm.md)."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import threading
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from time import monotonic_ns
from typing import Any

from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.layout import Struct
from casemate.abi.sev.platform import SevIoctl
from casemate.host.clock import NANOSECONDS

_NAMES = {int(each): each.kernel_name for each in (*Ioctl, *SevIoctl)}
_LONGEST_ARRAY = 32


def call_name(request: int) -> str:
    """The header's name of an ioctl, or its number."""
    return str(_NAMES.get(request, f"{request:#x}"))


class CallLog:
    """Writes to ``path``, JSON lines if it ends so; each process appends whole lines.

    Where one cannot be written the log ends, and ``tell`` gets a line for the user.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path = path
        self._tell = tell
        self._json = path.suffix == ".jsonl"
        # Nothing waits in a buffer, to fail when the process ends.
        self._file: FileIO | None = open(path, "ab", buffering=0)  # noqa: SIM115
        self._started = monotonic_ns()

    def write(self, who: str, request: int, argument: Any, result: int, nanoseconds: int, why: str) -> None:
        """One call: its argument decoded if it is a struct, negative ``result`` is an errno."""
        if self._file is None:
            return
        at = (monotonic_ns() - self._started) / NANOSECONDS
        name, seconds = call_name(request), nanoseconds / NANOSECONDS
        decoded = _decode(argument) if isinstance(argument, Struct) else argument
        error = errno.errorcode.get(-result, str(-result)) if result < 0 else None
        if self._json:
            row = {
                "time": round(at, 6),
                "pid": os.getpid(),
                "thread": threading.get_native_id(),
                "on": who,
                "ioctl": name,
                "argument": decoded,
                "result": result if error is None else -1,
                "errno": error,
                "why": why or None,
                "seconds": round(seconds, 6),
            }
            self._append(json.dumps(row))
            return
        shown = _text(decoded)
        outcome = str(result) if error is None else f"-1 {error}" + (f" ({why})" if why else "")
        self._append(
            f"{at:.6f} [{threading.get_native_id()}] {who} {name}({shown}) = {outcome} <{seconds:.6f}>"
        )

    def _append(self, line: str) -> None:
        file, rest = self._file, f"{line}\n".encode()
        try:
            while file is not None and rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            self._file = None
            self._tell(f"the log {self._path} cannot be written, and ends here: {error.strerror}")


def _decode(struct: Any) -> Any:
    if isinstance(struct, ctypes.Structure):
        names = (field[0] for field in struct._fields_)
        return {name: _decode(getattr(struct, name)) for name in names if not name.startswith("pad")}
    if isinstance(struct, ctypes.Array):
        values = [_decode(each) for each in struct[:_LONGEST_ARRAY]]
        return values if any(values) else []
    return struct


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}={_text(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_text(each) for each in value) + "]"
    return f"{value:#x}" if isinstance(value, int) and value > 9 else str(value)
