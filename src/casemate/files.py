"""Files read whole, up to a limit, and written whole, with errors that say what to do (docs/design/errors.md)."""

from __future__ import annotations

import contextlib
import os
import stat
from binascii import a2b_base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from casemate.errors import HostError, ImageError

LARGEST_DOCUMENT = 64 << 20
"""Bytes; more has no key, certificate, report, launch plan or domain."""
LARGEST_KERNEL = 1 << 30
"""Bytes."""


def json_text(document: dict[str, Any]) -> str:
    """A document as it is printed and written."""
    import json

    return json.dumps(document, indent=2)


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


def read_regular(path: str | Path, limit: int, remedy: str) -> bytes:
    """A whole regular file, whose size is looked at first. Raises ImageError for anything else, and a larger one."""
    try:
        # A FIFO that nobody writes to would be waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(path, "this is not a regular file", remedy)
            if status.st_size > limit:
                raise ImageError(path, f"{status.st_size} bytes are too many, the limit is {limit}", remedy)
            return file.read(limit)
    except (OSError, ValueError) as error:  # a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(path, f"cannot be read: {reason}", remedy) from None


def read_text(path: str | Path, remedy: str = "check the path") -> str:
    """A whole file in UTF-8. Raises ImageError if it cannot be read, is too large or no text."""
    try:
        return read_file(path, remedy=remedy).decode()
    except UnicodeDecodeError:
        raise ImageError(path, "cannot be read: it is no text", remedy) from None


def read_blob(path: str | Path, size: int, what: str, remedy: str) -> bytes:
    """A file of ``size`` bytes, raw or in base64. Raises ImageError, naming ``what`` it should be, if it is neither."""
    data = read_file(path)
    if len(data) != size:
        try:
            data = a2b_base64(data)
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


def write_secret(path: str | Path, data: bytes) -> None:
    """Write a file that its owner alone can read, whatever was there before; a link there is replaced, not followed.

    Raises HostError if the disk refuses, ImageError if something else than a file has the name.
    """
    remedy = "name a place that you may write to"
    target = Path(path)
    try:
        if os.path.lexists(target) and not (target.is_symlink() or target.is_file()):
            raise ImageError(path, "is no file, so no secret goes there", remedy)
        fd, name = _beside(target)
        with _removed_on_failure(name):
            _write_all(fd, data)
            os.replace(name, target)
    except (OSError, ValueError) as error:
        raise HostError("write", getattr(error, "errno", 0) or 0, str(path), remedy) from None


def write_whole(target: str | Path, data: bytes, doing: str = "") -> None:
    """Make ``target`` a file of ``data``, all of it or nothing.

    An existing file keeps its owner, permissions, access lists and names: links to it are followed, and where only
    overwriting keeps all of that, the new contents lie beside it until they are in it. A new file gets the permissions
    of new files. Raises HostError if it cannot be written.
    """
    path = Path(target).resolve()
    remedy = "choose a folder with room that you may write to"
    name = ""
    try:
        existing = path.stat() if path.exists() else None
        fd, name = _beside(path)
        with _removed_on_failure(name):
            is_twin = True
            if existing is None:
                os.fchmod(fd, _new_file_mode())
            else:
                is_twin = existing.st_nlink == 1 and _take_over(fd, path, existing)
            _write_all(fd, data)
            if is_twin:
                os.replace(name, path)
                return
        remedy = f"the new contents are whole in {name}"
        _overwrite(path, data)
        os.unlink(name)
    except OSError as error:
        raise HostError("write", error.errno or 0, doing or f"writing {target}", remedy) from error


def _beside(target: Path) -> tuple[int, str]:
    import tempfile  # loads ten modules, and most commands write no file

    return tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)


@contextlib.contextmanager
def _removed_on_failure(name: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _write_all(fd: int, data: bytes) -> None:
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def _take_over(fd: int, path: Path, existing: os.stat_result) -> bool:
    """Give the open file everything that ``path`` has but contents; whether that was allowed."""
    try:
        created = os.fstat(fd)
        if (created.st_uid, created.st_gid) != (existing.st_uid, existing.st_gid):
            os.fchown(fd, existing.st_uid, existing.st_gid)
        os.fchmod(fd, stat.S_IMODE(existing.st_mode))
        wanted = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        for name in set(os.listxattr(fd)) - wanted.keys():
            os.removexattr(fd, name)
        for name, value in wanted.items():
            os.setxattr(fd, name, value)
    except OSError:
        return False
    return True


def _overwrite(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _new_file_mode() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask
