"""The reader of qcow2 images, judged by qemu-img."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import ImageError
from casemate.firmware.qcow2 import read_qcow2

CONTENTS = b"".join(bytes([number % 251]) * 512 if number % 3 else bytes(512) for number in range(1056))


def qemu_img(*words: str | Path) -> None:
    program = shutil.which("qemu-img")
    if program is None:
        pytest.skip("no qemu-img (Debian: qemu-utils)")
    subprocess.run([program, *map(str, words)], check=True, capture_output=True)


def load(path: str) -> bytes | None:
    return Path(path).read_bytes() if Path(path).exists() else None


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-c",),
        ("-o", "compat=0.10"),
        ("-o", "cluster_size=512"),
        ("-o", "cluster_size=2M"),
        ("-c", "-o", "cluster_size=4k"),
        ("-o", "preallocation=metadata"),
        ("-o", "lazy_refcounts=on"),
    ],
)
def test_guest_sees_what_qemu_img_wrote(tmp_path: Path, options: tuple[str, ...]) -> None:
    raw, image = tmp_path / "a.raw", tmp_path / "a.qcow2"
    raw.write_bytes(CONTENTS)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, image)
    assert read_qcow2(image.read_bytes(), "a.qcow2", load) == CONTENTS


def test_clusters_that_are_not_there_come_from_the_backing_file(tmp_path: Path) -> None:
    raw, below, image = tmp_path / "a.raw", tmp_path / "b.qcow2", tmp_path / "c.qcow2"
    raw.write_bytes(CONTENTS)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, below)
    qemu_img("create", "-f", "qcow2", "-b", below, "-F", "qcow2", image, str(len(CONTENTS) + 4096))
    assert read_qcow2(image.read_bytes(), "c.qcow2", load) == CONTENTS + bytes(4096)
    with pytest.raises(ImageError, match="backing file"):
        read_qcow2(image.read_bytes(), "c.qcow2", lambda _: None)
    with pytest.raises(ImageError, match="below each other"):
        read_qcow2(image.read_bytes(), "c.qcow2", lambda _: image.read_bytes())


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    image = tmp_path / "big.qcow2"
    qemu_img("create", "-f", "qcow2", image, "10G")
    with pytest.raises(ImageError, match="no firmware"):
        read_qcow2(image.read_bytes(), "big.qcow2", load)
    qemu_img("create", "-f", "qcow2", "-o", "extended_l2=on", image, "1M")
    with pytest.raises(ImageError, match="features 0x10"):
        read_qcow2(image.read_bytes(), "big.qcow2", load)
    with pytest.raises(ImageError, match="header"):
        read_qcow2(b"QFI\xfb", "short", load)


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_image_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "qcow2-damaged"
    if not folder.exists():
        folder.mkdir()
        (folder / "a.raw").write_bytes(CONTENTS)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", folder / "a.raw", folder / "a.qcow2")
    image = bytearray((folder / "a.qcow2").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(0, min(len(image) - 1, 300000)))] = data.draw(st.integers(0, 255))
    with suppress(ImageError):
        assert len(read_qcow2(bytes(image), "a.qcow2", lambda _: None)) <= 64 << 20
