"""The table of hashes by which a kernel, an initrd and a command line enter the digest (QEMU target/i386/sev.c)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from casemate.errors import ImageError
from casemate.firmware.guided_table import GuestArea
from casemate.firmware.guids import KERNEL_HASH_ENTRY, guid
from casemate.firmware.image import FirmwareImage

TABLE_SIZE = 176
"""Bytes, with the padding that LAUNCH_UPDATE_DATA needs."""

_TABLE = guid("9438d606-4f22-4cc9-b479-a793d411fd21")
_CMDLINE = guid("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
_INITRD = guid("44baf731-3a2f-4bd7-9af1-41e29169781d")
_LENGTH_SIZE = 2
_REMEDY = "use a build that sets the area apart, such as edk2's AmdSev, or leave the kernel unmeasured"


class KernelHashes(NamedTuple):
    """SHA-256 of the three things a direct boot hands over."""

    kernel: bytes
    initrd: bytes
    cmdline: bytes

    @classmethod
    def of(cls, kernel: bytes, initrd: bytes = b"", cmdline: str = "") -> KernelHashes:
        """Hash contents; the command line is hashed with its NUL, no initrd as an empty one."""
        return cls(
            _sha256(kernel), _sha256(initrd), _sha256(cmdline.encode(errors="surrogateescape") + b"\0")
        )

    @classmethod
    def of_files(
        cls, kernel: str | Path, initrd: str | Path | None = None, cmdline: str = ""
    ) -> KernelHashes:
        """Hash files of any size. Raises ImageError if one cannot be read."""
        nothing = cls.of(b"", b"", cmdline)
        return cls(_hash_file(kernel), _hash_file(initrd) if initrd else nothing.initrd, nothing.cmdline)

    def to_bytes(self) -> bytes:
        """The table, 176 bytes."""
        entries = b"".join(
            name + (len(name) + _LENGTH_SIZE + len(digest)).to_bytes(2, "little") + digest
            for name, digest in (
                (_CMDLINE, self.cmdline),
                (_INITRD, self.initrd),
                (KERNEL_HASH_ENTRY, self.kernel),
            )
        )
        length = len(_TABLE) + _LENGTH_SIZE + len(entries)
        return (_TABLE + length.to_bytes(2, "little") + entries).ljust(TABLE_SIZE, b"\0")


def find_hashes_area(image: FirmwareImage) -> GuestArea:
    """Where the image wants the table. Raises ImageError if it has no area, or one that cannot be used."""
    area = image.sev_hashes
    if area is None:
        raise ImageError(
            image.name, "kernel hashes are asked for, but the image has no area for them", _REMEDY
        )
    if not area.is_usable or area.size < TABLE_SIZE or area.base % 16:
        where = f"base {area.base:#x}, size {area.size:#x}"
        raise ImageError(image.name, f"the area for kernel hashes is unusable ({where})", _REMEDY)
    return area


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _hash_file(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(path, f"cannot be read: {reason}", "check the path") from None
