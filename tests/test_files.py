"""Files are read up to a limit, and what is wrong with one is said with its name."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from casemate.errors import HostError, ImageError
from casemate.files import read_blob, read_file, read_text, write_file


def test_file_that_never_ends_is_refused() -> None:
    with pytest.raises(ImageError, match="/dev/zero: over 1000 bytes are too many"):
        read_file("/dev/zero", limit=1000)


@pytest.mark.parametrize(
    ("name", "cause"), [("none", "No such file"), (".", "Is a directory"), ("a\0b", "null byte")]
)
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, name: str, cause: str) -> None:
    with pytest.raises(ImageError, match=cause):
        read_file(tmp_path / name)


def test_bytes_are_no_text(tmp_path: Path) -> None:
    write_file(tmp_path / "f", b"\xff\xfe")
    with pytest.raises(ImageError, match="it is no text; give one"):
        read_text(tmp_path / "f", "give one")


def test_blob_may_be_base64(tmp_path: Path) -> None:
    for data in (b"sixteen bytes...", base64.b64encode(b"sixteen bytes...")):
        write_file(tmp_path / "f", data)
        assert read_blob(tmp_path / "f", 16, "a key", "make one") == b"sixteen bytes..."
    with pytest.raises(ImageError, match="a key has 17 bytes, raw or in base64; make one"):
        read_blob(tmp_path / "f", 17, "a key", "make one")


def test_keys_are_written_for_their_owner_alone(tmp_path: Path) -> None:
    write_file(tmp_path / "key", b"k", 0o600)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(HostError, match="name a place"):
        write_file(tmp_path / "none" / "key", b"k")
