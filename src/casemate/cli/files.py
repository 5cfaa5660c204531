"""Small files that commands read and write, with errors that say what to do (docs/design/errors.md)."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from casemate.errors import HostError, SpecError


def state_folder() -> Path:
    """Where casemate keeps what belongs to this user's guests (XDG base directory specification)."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "casemate"


def read_file(path: Path) -> bytes:
    """A whole file. Raises SpecError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}", "check the path") from None


def read_blob(path: Path, size: int, what: str, remedy: str) -> bytes:
    """A file of ``size`` bytes, raw or in base64. Raises SpecError, naming ``what`` it should be, if it is neither."""
    data = read_file(path)
    if len(data) != size:
        try:
            data = base64.b64decode(data)
        except ValueError:
            data = b""
    if len(data) != size:
        raise SpecError(f"{path}: {what} has {size} bytes, raw or in base64", remedy)
    return data


def write_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a whole file, readable as ``mode`` says. Raises HostError if it cannot be written."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb") as file:
            file.write(data)
    except OSError as error:
        raise HostError("write", error.errno or 0, str(path), "choose a place you may write to") from None
