"""Files are read up to a limit, and what is wrong with one is said with its name."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.errors import HostError, ImageError
from casemate.files import read_blob, read_file, read_text, write_file, write_secret, write_whole


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


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("before", [None, 0o644, 0o666, 0o755])
def test_secret_is_its_owners_alone_whatever_was_there(tmp_path: Path, before: int | None) -> None:
    path = tmp_path / "key"
    if before is not None:
        path.write_bytes(b"old")
        path.chmod(before)
    write_secret(path, b"new")
    assert (path.read_bytes(), mode_of(path)) == (b"new", 0o600)
    assert os.listdir(tmp_path) == ["key"]


@pytest.mark.parametrize("exists", [True, False])
def test_secret_does_not_follow_a_link(tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "world", tmp_path / "key"
    if exists:
        target.write_bytes(b"readable")
    link.symlink_to(target)
    write_secret(link, b"secret")
    assert (link.is_symlink(), link.read_bytes(), mode_of(link)) == (False, b"secret", 0o600)
    assert target.read_bytes() == b"readable" if exists else not target.exists()


def test_secret_does_not_go_where_no_file_can_be(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(ImageError, match="is no file"):
            write_secret(tmp_path / name, b"secret")
    with pytest.raises(HostError, match="name a place"):
        write_secret(tmp_path / "none" / "key", b"secret")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old, and longer")
    path.chmod(mode)
    write_whole(path, b"new")
    assert (path.read_bytes(), mode_of(path)) == (b"new", mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(("owner", "group"), [(1, 0), (0, 5), (1234, 4321)])
def test_file_that_root_replaces_keeps_its_owner(tmp_path: Path, owner: int, group: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(0o600)
    os.chown(path, owner, group)
    write_whole(path, b"new")
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (owner, group, 0o600)
    assert path.read_bytes() == b"new"


def test_every_name_of_a_file_stays_its_name(tmp_path: Path) -> None:
    path, hard, soft = (tmp_path / name for name in ("f", "hard", "soft"))
    path.write_bytes(b"old, and longer")
    hard.hardlink_to(path)
    soft.symlink_to(path)
    write_whole(soft, b"new")
    assert soft.is_symlink()
    assert [name.read_bytes() for name in (path, hard, soft)] == [b"new"] * 3
    assert path.samefile(hard)
    assert sorted(os.listdir(tmp_path)) == ["f", "hard", "soft"]


def test_extended_attributes_stay(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.label", b"mine")
    except OSError as error:
        pytest.skip(f"this file system has no attributes: {error.strerror}")
    write_whole(path, b"new")
    assert os.getxattr(path, "user.label") == b"mine"


def test_access_list_stays(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    # Version 2; user::rw-, user 1234:r--, group::---, mask::r--, other::---
    entries = [(1, 6, 0xFFFFFFFF), (2, 4, 1234), (4, 0, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
    numbers = (
        (tag.to_bytes(2, "little"), bits.to_bytes(2, "little"), who.to_bytes(4, "little"))
        for tag, bits, who in entries
    )
    access = (2).to_bytes(4, "little") + b"".join(part for entry in numbers for part in entry)
    try:
        os.setxattr(path, "system.posix_acl_access", access)
    except OSError as error:
        pytest.skip(f"this file system has no access lists: {error.strerror}")
    write_whole(path, b"new")
    assert os.getxattr(path, "system.posix_acl_access") == access


def test_replacing_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    limited = (
        "import resource, signal, sys; from casemate.files import write_whole; from casemate.errors import HostError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: write_whole(sys.argv[1], bytes(1000))\n"
        "except HostError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, str(path)], capture_output=True, text=True, check=True
    )
    assert "File too large" in done.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]
