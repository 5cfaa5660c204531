"""Locks on image files: flock(2) between guests of casemate, and byte locks as QEMU takes them (block/file-posix.c).

QEMU says what it does to a file, and what others may not do, by read locks on single bytes. Its pflash lets others
write: two of its guests may share a variable store, a guest of casemate shares none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from casemate.errors import HostError, ImageError

_READS, _WRITES, _FORBIDS_WRITING = 100, 101, 201
"""Bytes: 100 and on for what is done, 200 and on for what is forbidden."""

_FLOCK = struct.Struct("hhqqi4x")
_UNSUPPORTED = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP)


def lock_image(path: Path, fd: int, *, readonly: bool) -> None:
    """Lock an open image until it is closed: against all others, or where ``readonly`` against those that write.

    Raises ImageError if somebody else uses it so, HostError if it cannot be locked.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise HostError("flock", error.errno or 0, str(path)) from error
        raise _in_use(path, "another guest") from error
    # QEMU's way: first say what one does, then look for who objects, so that of two at least one sees the other.
    taken = (_READS, _FORBIDS_WRITING) if readonly else (_READS, _WRITES, _FORBIDS_WRITING)
    others = (_WRITES,) if readonly else (_WRITES, _FORBIDS_WRITING)
    try:
        for byte in taken:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(fcntl.F_RDLCK, byte))
        found = [_is_locked(fd, byte) for byte in others]
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return  # QEMU goes without on such file systems, too
        raise HostError(
            "F_OFD_SETLK", error.errno or 0, f"{path}: {os.strerror(error.errno or 0)}"
        ) from error
    if any(found):
        raise _in_use(path, "QEMU, or another program that locks as QEMU does")


def _in_use(path: Path, by: str) -> ImageError:
    return ImageError(path, f"is in use by {by}", "give every guest its own copy, or stop the other one")


def _is_locked(fd: int, byte: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK, byte))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _request(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
