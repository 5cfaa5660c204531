"""The file behind a flash unit: locks, refusals, write-back, and copies that are whole or not there."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from casemate.address import Gpa
from casemate.devices.flash.cfi import CfiFlash
from casemate.devices.flash.file import FlashFile, copy_template
from casemate.errors import HostError, ImageError
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory
from casemate.memory.map import MemoryMap
from casemate.memory.protection import WriteProtection
from casemate.memory.region import RomDevice
from casemate.testing.recording_vm import RecordingSink, RecordingVm

SIZE = 0x4000


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "VARS.fd"
    path.write_bytes(random.Random(5).randbytes(SIZE))
    return path


def test_flash_file_reads_the_image(image: Path) -> None:
    file = FlashFile.open(image, readonly=True)
    assert file.read() == image.read_bytes()
    assert file.size == SIZE
    file.close()
    file.close()


def test_flash_file_of_a_running_guest_is_refused(image: Path) -> None:
    first = FlashFile.open(image, readonly=False)
    for readonly in (True, False):
        with pytest.raises(
            ImageError, match=r"VARS\.fd: is in use by another guest; give every guest its own copy"
        ):
            FlashFile.open(image, readonly=readonly)
    first.close()
    FlashFile.open(image, readonly=False).close()


def test_flash_file_read_only_is_shared(image: Path) -> None:
    files = [FlashFile.open(image, readonly=True) for _ in range(3)]
    for file in files:
        file.close()


def test_flash_file_that_was_refused_leaks_no_descriptor(image: Path) -> None:
    holder = FlashFile.open(image, readonly=False)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(ImageError):
            FlashFile.open(image, readonly=False)
    assert len(os.listdir("/proc/self/fd")) == before
    holder.close()


@pytest.mark.parametrize(
    ("size", "complaint"), [(0, "is empty"), (100, "no multiple of 0x1000"), (0x1001, "no multiple")]
)
def test_flash_file_of_a_wrong_size_is_refused(tmp_path: Path, size: int, complaint: str) -> None:
    path = tmp_path / "odd.fd"
    path.write_bytes(bytes(size))
    with pytest.raises(ImageError, match=f"odd.fd: .*{complaint}"):
        FlashFile.open(path, readonly=True)


def test_flash_file_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for readonly in (True, False):
        with pytest.raises(ImageError, match="directory"):
            FlashFile.open(tmp_path, readonly=readonly)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="no regular file"):
        FlashFile.open(tmp_path / "pipe", readonly=True)
    for readonly, remedy in ((True, "check the path"), (False, "copy a template there")):
        with pytest.raises(ImageError, match=f"no such file; {remedy}"):
            FlashFile.open(tmp_path / "missing", readonly=readonly)
    with pytest.raises(ImageError, match="no file name"):
        FlashFile.open("a\0b", readonly=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to everything")
def test_flash_file_without_permission_is_refused_with_a_remedy(image: Path) -> None:
    image.chmod(0o444)
    with pytest.raises(ImageError, match="make it writable, or give the guest a copy"):
        FlashFile.open(image, readonly=False)


def test_flash_file_that_shrinks_is_noticed(image: Path) -> None:
    file = FlashFile.open(image, readonly=True)
    os.truncate(image, 0x1000)
    with pytest.raises(ImageError, match="at offset 0x1000: became shorter"):
        file.read()
    file.close()


def test_flash_file_sparse_gets_its_blocks_when_writable(tmp_path: Path) -> None:
    path = tmp_path / "sparse.fd"
    path.touch()
    os.truncate(path, 1 << 20)
    FlashFile.open(path, readonly=True).close()
    assert path.stat().st_blocks == 0
    FlashFile.open(path, readonly=False).close()
    if path.stat().st_blocks == 0:
        pytest.skip("this file system reserves nothing")
    assert path.stat().st_blocks * 512 >= 1 << 20
    assert path.read_bytes() == bytes(1 << 20)


def test_flash_file_close_brings_changes_to_the_disk(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    FlashFile.open(image, readonly=False).close()
    assert synced == []
    file = FlashFile.open(image, readonly=False)
    file.write_back(0, b"new")
    file.close()
    file.close()
    assert len(synced) == 1


@contextmanager
def small_disk() -> Iterator[None]:
    """Files may not grow over 8 KiB: writes fail as on a full disk, those of the test's runner, too."""
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0x2000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)


def test_flash_file_write_back_failure_names_file_and_offset(image: Path) -> None:
    file = FlashFile.open(image, readonly=False)
    file.write_back(0x1000, b"fits")
    with (
        small_disk(),
        pytest.raises(HostError, match=r"pwrite failed: .*VARS\.fd at offset 0x3000") as caught,
    ):
        file.write_back(0x3000, b"does not")
    assert caught.value.errno == errno.EFBIG
    file.close()


def test_copy_template_is_whole(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "guest.fd"
    copy_template(image, target)
    assert target.read_bytes() == image.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VARS.fd", "guest.fd"]


def test_new_files_have_the_permissions_of_new_files(image: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"")
    copy_template(image, tmp_path / "guest.fd")
    assert (tmp_path / "guest.fd").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_copy_template_on_a_full_disk_leaves_nothing(image: Path, tmp_path: Path) -> None:
    with small_disk(), pytest.raises(HostError, match=r"copying .*VARS\.fd to .*guest\.fd"):
        copy_template(image, tmp_path / "guest.fd")
    assert [path.name for path in tmp_path.iterdir()] == ["VARS.fd"]


def test_copy_template_keeps_the_old_target_if_it_fails(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "guest.fd"
    target.write_bytes(b"old")
    with small_disk(), pytest.raises(HostError):
        copy_template(image, target)
    assert target.read_bytes() == b"old"


def test_copy_template_into_nowhere_is_refused(image: Path, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        copy_template(image, tmp_path / "missing" / "guest.fd")
    with pytest.raises(ImageError, match="no such file"):
        copy_template(tmp_path / "missing", tmp_path / "guest.fd")


def test_flash_file_equals_memory_after_any_commands(image: Path) -> None:
    vm, sink, backing = RecordingVm(), RecordingSink(), Backing("vars", SIZE)
    memory = FlashMemory(1, backing, WriteProtection.READONLY_VMA, vm, sink)
    file = FlashFile.open(image, readonly=False)
    memory.store(0, file.read())
    flash = CfiFlash(1, memory, file, sink)
    memory.attach(MemoryMap(vm), RomDevice("vars", backing, flash), Gpa(0xFFC00000))
    rng = random.Random(11)
    before = image.read_bytes()
    for step in range(3000):
        command = rng.choice([0x10, 0x10, 0x20, 0x40, 0xE8, 0xFF, 0xD0, 0xD0, 0, 1, 2])
        flash.write_mmio(rng.randrange(SIZE - 8), rng.choice([1, 1, 2, 4, 8]), command)
        if step % 100 == 0:
            assert image.read_bytes() == memory.read(0, SIZE)
    assert image.read_bytes() == memory.read(0, SIZE)
    assert image.read_bytes() != before
    file.close()


def test_flash_file_read_only_is_never_written(image: Path) -> None:
    vm, sink, backing = RecordingVm(), RecordingSink(), Backing("code", SIZE)
    memory = FlashMemory(0, backing, WriteProtection.READONLY_SLOT, vm, sink)
    file = FlashFile.open(image, readonly=True)
    memory.store(0, file.read())
    before = image.read_bytes()
    flash = CfiFlash(0, memory, file, sink)
    memory.attach(MemoryMap(vm), RomDevice("code", backing, flash), Gpa(0xFFE00000))
    for value in (0x10, 0x00, 0x20, 0xD0, 0xE8, 0x00, 0x12, 0xD0):
        flash.write_mmio(0x40, 1, value)
    assert flash.readonly
    assert image.read_bytes() == before == memory.read(0, SIZE)
