"""A firmware file and what it says about itself (edk2 OvmfPkg/ResetVector; QEMU hw/i386/pc_sysfw_ovmf.c)."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.address import FOUR_GIB, Gpa
from casemate.errors import ImageError
from casemate.firmware.volume_header import VolumeHeader, find_volumes

if TYPE_CHECKING:
    from casemate.firmware.guided_table import GuestArea, GuidedTable
    from casemate.firmware.sev_metadata import SevMetadata
    from casemate.firmware.tdvf import TdvfMetadata

LARGEST_FILE = 64 << 20
"""Bytes; a file over this is not read at all, for no firmware of any architecture is as large."""


class FirmwareImage:
    """The bytes of one firmware or variable-store file, and its name: the path as the user gave it.

    The properties parse (and load their parsers) on first use; those that read tables raise ImageError where a
    table is broken.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.data = data
        self._volumes: tuple[VolumeHeader, ...] | None = None
        self._tables: tuple[GuidedTable | None] | None = None

    @classmethod
    def load(cls, path: str | Path) -> FirmwareImage:
        """Read a file. Raises ImageError if it is missing, empty, unreadable, not regular or over 64 MiB."""
        return cls.from_bytes(_read(path), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> FirmwareImage:
        """An image out of memory. Raises ImageError if ``data`` is empty."""
        if not data:
            raise ImageError(name, "the file is empty", "give a firmware image")
        return cls(name, data)

    def __repr__(self) -> str:
        return f"FirmwareImage({self.name!r}, {self.size} bytes)"

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    @property
    def base(self) -> Gpa:
        """Where the image starts if it ends at 4 GiB, as flash unit 0 and ``-bios`` do."""
        return Gpa(FOUR_GIB - self.size)

    @property
    def volumes(self) -> tuple[VolumeHeader, ...]:
        """The firmware volumes that lie open in the file."""
        if self._volumes is None:
            self._volumes = tuple(find_volumes(self.data))
        return self._volumes

    @property
    def code_volumes(self) -> tuple[VolumeHeader, ...]:
        """The volumes that hold code."""
        return tuple(volume for volume in self.volumes if not volume.holds_variables)

    @property
    def variable_volume(self) -> VolumeHeader | None:
        """The volume of the variable store, if the file has one."""
        return next((volume for volume in self.volumes if volume.holds_variables), None)

    @property
    def guided_table(self) -> GuidedTable | None:
        """The GUIDed table at the end of the image, or None."""
        if self._tables is None:
            from casemate.firmware.guided_table import parse_guided_table

            self._tables = (parse_guided_table(self.data, self.name),)
        return self._tables[0]

    @property
    def sev_es_reset(self) -> int | None:
        """CS:IP at which application processors of a SEV-ES guest start, or None."""
        return self.guided_table.sev_es_reset if self.guided_table else None

    @property
    def sev_hashes(self) -> GuestArea | None:
        """The area for kernel hashes, which may be unusable, or None."""
        return self.guided_table.sev_hashes if self.guided_table else None

    @property
    def sev_secret(self) -> GuestArea | None:
        """The area for the launch secret, which may be unusable, or None."""
        return self.guided_table.sev_secret if self.guided_table else None

    @property
    def sev_metadata(self) -> SevMetadata | None:
        """The pages that an SNP launch must prepare, or None."""
        from casemate.firmware.sev_metadata import parse_sev_metadata

        return parse_sev_metadata(self.data, self.guided_table, self.name)

    @property
    def tdvf(self) -> TdvfMetadata | None:
        """The sections that a TDX launch must add, or None."""
        from casemate.firmware.tdvf import parse_tdvf

        return parse_tdvf(self.data, self.guided_table, self.name)


def _read(path: str | Path) -> bytes:
    try:
        # Not blocking: opening a FIFO must fail in fstat's check, not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            _validate_file(path, status)
            return file.read(status.st_size) or b""
    except FileNotFoundError:
        raise ImageError(path, "no such file", "check the path") from None
    except IsADirectoryError:
        raise ImageError(path, "this is a directory", "give a firmware file inside it") from None
    except OSError as error:
        raise ImageError(path, f"cannot be read: {error.strerror}", "check its permissions") from None
    except ValueError as error:  # a NUL in the path
        raise ImageError(repr(path), f"no usable path: {error}", "check the path") from None


def _validate_file(path: str | Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(path, "this is a directory", "give a firmware file inside it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(path, "this is not a regular file", "copy the firmware into a file")
    if status.st_size > LARGEST_FILE:
        raise ImageError(
            path, f"{status.st_size} bytes are too many for firmware", "give an image of at most 8 MiB"
        )
