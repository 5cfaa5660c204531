"""The file behind a flash unit: locked, read once, and written back as the guest programs (pwrite(2))."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from casemate.devices.flash.image_lock import lock_image
from casemate.devices.flash.spec import SECTOR_SIZE
from casemate.devices.flash.sync import Sync
from casemate.errors import HostError, ImageError
from casemate.files import write_whole
from casemate.firmware.bios import MAX_FLASH

_NO_SUPPORT = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class FlashFile:
    """An open image. A writable one belongs to one guest alone; read-only ones are shared.

    Each command is one ``write_back`` of one page or less, which a killed process has done wholly or not at all.
    """

    def __init__(self, path: Path, fd: int, size: int, readonly: bool, sync: Sync = Sync.EXIT) -> None:
        self.path = path
        self.size = size
        """Bytes."""
        self.readonly = readonly
        self._fd = fd
        self._sync = sync
        self._dirty = False
        self._is_settled = True

    @classmethod
    def open(cls, path: str | Path, *, readonly: bool, sync: Sync = Sync.EXIT) -> FlashFile:
        """Open and lock an image.

        Raises ImageError for a file that cannot be read (or written), that another guest uses, or whose size is not
        a positive multiple of 4096 bytes, and HostError if the disk has no room for all of a sparse file.
        """

        path = Path(path)
        fd = _open(path, readonly)
        try:
            size = _checked_size(path, fd)
            lock_image(path, fd, readonly=readonly)
            if not readonly:
                _reserve(path, fd, size)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, size, readonly, sync)

    @property
    def writes_through(self) -> bool:
        """Whether each change goes to the disk at once."""
        return self._sync is Sync.ALWAYS

    def read(self) -> bytes:
        """All of the image. Raises ImageError if it became shorter."""
        data = b""
        try:
            while len(data) < self.size and (part := os.pread(self._fd, self.size - len(data), len(data))):
                data += part
        except OSError as error:
            raise ImageError(self.path, f"cannot be read: {error.strerror}") from error
        if len(data) < self.size:
            raise ImageError(
                self.path, f"became shorter than {self.size:#x} bytes", "leave it alone in use", len(data)
            )
        return data

    def write_back(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Overwrite the bytes at ``offset``. Raises HostError if the disk is full or broken."""
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._fd, memoryview(data)[done:], offset + done)
        except OSError as error:
            raise HostError(
                "pwrite",
                error.errno or 0,
                f"{self.path} at offset {offset + done:#x}",
                "make room, or use another disk",
            ) from error
        self._dirty, self._is_settled = True, False
        if self._sync is Sync.ALWAYS:
            self._flush()

    def settle(self) -> None:
        """Called now and then: brings changes to the disk that are older than the last call, under ``Sync.IDLE``.

        Raises HostError if the disk refuses.
        """
        if self._sync is not Sync.IDLE or not self._dirty or self._fd < 0:
            return
        if self._is_settled:
            self._flush()
        self._is_settled = True

    def close(self) -> None:
        """Bring changes to the disk and unlock; harmless when repeated. Raises HostError if the disk refuses."""
        if self._fd < 0:
            return
        try:
            if self._dirty:
                self._flush()
        finally:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _flush(self) -> None:
        self._dirty = False  # first: a store that comes meanwhile must not be forgotten
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise HostError("fdatasync", error.errno or 0, str(self.path)) from error


def copy_template(template: str | Path, target: str | Path) -> None:
    """Make ``target`` a copy of ``template``, all of it or nothing.

    Raises ImageError if the template cannot be read, HostError if the copy cannot be written.
    """
    source = FlashFile.open(template, readonly=True)
    try:
        data = source.read()
    finally:
        source.close()
    write_whole(target, data, f"copying {template} to {target}")


@contextlib.contextmanager
def locked_image(path: str | Path) -> Iterator[None]:
    """Keep guests from ``path``, to change it. Raises ImageError if one uses it, or it cannot be written."""

    path = Path(path)
    fd = _open(path, readonly=False)
    try:
        lock_image(path, fd, readonly=False)
        yield
    finally:
        os.close(fd)


def _open(path: Path, readonly: bool) -> int:
    flags = os.O_RDONLY if readonly else os.O_RDWR
    try:
        # O_NONBLOCK: a pipe must be refused, not waited for.
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        remedy = "check the path"
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            remedy = (
                "check its permissions" if readonly else "make it writable, or give the guest a copy of it"
            )
        if error.errno == errno.EISDIR:
            remedy = "name the image file in it"
        if error.errno == errno.ENOENT:
            remedy = "check the path" if readonly else "copy a template there, or say --vars-template"
            raise ImageError(path, "no such file", remedy) from error
        what = "read" if readonly else "written"
        raise ImageError(path, f"cannot be {what}: {error.strerror}", remedy) from error
    except ValueError as error:
        raise ImageError(repr(str(path)), "is no file name", "check the path") from error


def _checked_size(path: Path, fd: int) -> int:
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(path, "is a directory", "name the image file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(path, "is no regular file", "copy the image into one")
    if status.st_size > MAX_FLASH:
        cause = f"has {status.st_size} bytes, and at most 8 MiB ({MAX_FLASH}) of flash fit below 4 GiB"
        raise ImageError(path, cause, "give a firmware image or a copy of its variable store")
    if status.st_size == 0:
        raise ImageError(path, "is empty", "give a firmware image or a copy of its variable store")
    if status.st_size % SECTOR_SIZE:
        raise ImageError(
            path,
            f"has {status.st_size:#x} bytes, which is no multiple of {SECTOR_SIZE:#x}",
            "flash images come in whole 4 KiB sectors; pad it, or load it with --bios",
        )
    return status.st_size


def _reserve(path: Path, fd: int, size: int) -> None:
    if os.fstat(fd).st_blocks * 512 >= size:
        return
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in _NO_SUPPORT:
            raise HostError(
                "posix_fallocate", error.errno or 0, str(path), "make room on the disk"
            ) from error
