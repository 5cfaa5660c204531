"""Loading firmware files: what is no file of firmware is refused with its cause."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from casemate.errors import ImageError
from casemate.firmware.image import LARGEST_FILE, FirmwareImage
from casemate.testing.images import ImageBuilder, variable_store


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file") as caught:
        FirmwareImage.load(tmp_path / "none.fd")
    assert caught.value.exit_code == 4


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="directory"):
        FirmwareImage.load(tmp_path)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.fd").touch()
    with pytest.raises(ImageError, match="empty"):
        FirmwareImage.load(tmp_path / "empty.fd")


def test_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="not a regular file"):
        FirmwareImage.load(tmp_path / "fifo")


def test_nul_in_path_is_refused() -> None:
    with pytest.raises(ImageError, match="no usable path"):
        FirmwareImage.load("a\0b")


def test_unreadable_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match="cannot be read: Permission denied"):
        FirmwareImage.load("secret.fd")


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.fd"
    with path.open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(ImageError, match="too many"):
        FirmwareImage.load(path)


def test_image_ends_at_four_gib() -> None:
    image = FirmwareImage.from_bytes(bytes(0x1E0000), "code")
    assert image.base == 0xFFE20000


def test_combined_image_shows_store_and_code_volumes() -> None:
    data = variable_store(0x84000) + ImageBuilder(0x37C000, volume=True).build()
    image = FirmwareImage.from_bytes(data, "combined")
    assert image.variable_volume is not None
    assert image.variable_volume.length == 0x84000
    assert [volume.offset for volume in image.code_volumes] == [0x84000]
