"""Files read whole, up to a limit, and written whole, with errors that say what to do (docs/design/errors.md)."""

from __future__ import annotations

import os

from casemate.errors import HostError, ImageError
from casemate.records import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_DOCUMENT = 64 << 20
"""Bytes; more has no key, certificate, report, launch plan or domain."""
LARGEST_KERNEL = 1 << 30
"""Bytes."""


def read_file(path: str | Path, limit: int = LARGEST_DOCUMENT, remedy: str = "check the path") -> bytes:
    """A whole file or pipe. Raises ImageError if it cannot be read, or has over ``limit`` bytes."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(path, f"cannot be read: {reason}", remedy) from None
    if len(data) > limit:
        raise ImageError(path, f"over {limit} bytes are too many", remedy)
    return data


def read_text(path: str | Path, remedy: str = "check the path") -> str:
    """A whole file in UTF-8. Raises ImageError if it cannot be read, is too large or no text."""
    try:
        return read_file(path, remedy=remedy).decode()
    except UnicodeDecodeError:
        raise ImageError(path, "cannot be read: it is no text", remedy) from None


def read_blob(path: str | Path, size: int, what: str, remedy: str) -> bytes:
    """A file of ``size`` bytes, raw or in base64. Raises ImageError, naming ``what`` it should be, if it is neither."""
    from base64 import b64decode

    data = read_file(path)
    if len(data) != size:
        try:
            data = b64decode(data)
        except ValueError:
            data = b""
    if len(data) != size:
        raise ImageError(path, f"{what} has {size} bytes, raw or in base64", remedy)
    return data


def write_file(path: str | Path, data: bytes, mode: int = 0o644) -> None:
    """Write a whole file; a new one is readable as ``mode`` says. Raises HostError if the disk refuses."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb") as file:
            file.write(data)
    except OSError as error:
        raise HostError("write", error.errno or 0, str(path), "name a place that you may write to") from None
