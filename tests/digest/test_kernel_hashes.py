"""The kernel-hashes table, byte for byte (QEMU target/i386/sev.c)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from casemate.digest.kernel_hashes import KernelHashes
from casemate.errors import ImageError


def test_table_is_the_known_one() -> None:
    table = KernelHashes.of(b"kernel-bytes", b"initrd-bytes", "console=ttyS0").to_bytes()
    assert len(table) == 176
    assert table.hex().startswith("06d63894224fc94cb479a793d411fd21a800d82dd09720bd")
    expected = "53a49fbf82e5b78ebe6a5520b25a506ee17515cfbf940876e52b2554d3cde8b5"
    assert hashlib.sha256(table).hexdigest() == expected


def test_kernel_alone_gives_the_known_table() -> None:
    table = KernelHashes.of(b"kernel-bytes").to_bytes()
    assert (
        hashlib.sha256(table).hexdigest()
        == "3e49ddd27db5da487fba63843003dbe8db01c46a56c6829645cf6731c79a6917"
    )


def test_command_line_is_hashed_with_its_nul() -> None:
    assert KernelHashes.of(b"", b"", "").cmdline == hashlib.sha256(b"\0").digest()
    assert KernelHashes.of(b"", b"", "quiet").cmdline == hashlib.sha256(b"quiet\0").digest()


def test_undecodable_command_line_is_hashed_as_its_bytes() -> None:
    assert KernelHashes.of(b"", b"", "\udcff").cmdline == hashlib.sha256(b"\xff\0").digest()


def test_files_give_the_hashes_of_their_contents(tmp_path: Path) -> None:
    for name in ("kernel", "initrd"):
        (tmp_path / name).write_bytes(name.encode())
    hashes = KernelHashes.of_files(tmp_path / "kernel", tmp_path / "initrd", "x")
    assert hashes == KernelHashes.of(b"kernel", b"initrd", "x")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        KernelHashes.of_files(tmp_path / "none")
