"""Volumes and files: those of real images against uefi-firmware's parser, and damage that must not stop the walk."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.firmware_images import find_images

pytest.importorskip("uefi_firmware", reason="uefi-firmware is not installed (./dev test says why)")

from uefi_firmware.uefi import FirmwareFile as OracleFile
from uefi_firmware.uefi import FirmwareVolume as OracleVolume

from casemate.firmware import guids, volume
from casemate.firmware.image import FirmwareImage
from casemate.firmware.volume import FirmwareVolume, read_volume, read_volumes
from casemate.firmware.volume_header import find_volumes, parse_volume_header
from casemate.testing.images import volume_header

NAME = guids.guid("00112233-4455-6677-8899-aabbccddeeff")
VOLUME_SECTION, UI_SECTION, GUIDED_SECTION = 0x17, 0x15, 0x02


def section(kind: int, contents: bytes) -> bytes:
    data = struct.pack("<I", len(contents) + 4 | kind << 24) + contents
    return data.ljust(len(data) + 3 & ~3, b"\0")


def packed(contents: bytes) -> bytes:
    stream = lzma.compress(contents, format=lzma.FORMAT_ALONE)
    return section(GUIDED_SECTION, guids.LZMA_SECTION + struct.pack("<HH", 24, 1) + stream)


def file(contents: bytes, kind: int = 0x0B, size: int | None = None) -> bytes:
    length = len(contents) + 24 if size is None else size
    header = NAME + b"\0\0" + bytes((kind, 0)) + length.to_bytes(3, "little") + b"\xf8"
    return (header + contents).ljust(len(contents) + 31 & ~7, b"\xff")


def in_volume(*files: bytes, size: int = 0) -> bytes:
    body = b"".join(files)
    size = size or 72 + len(body) + 64
    return (volume_header(size) + body).ljust(size, b"\xff")


def walk(data: bytes) -> FirmwareVolume:
    image = FirmwareImage.from_bytes(data, "x.fd")
    return read_volume(data, image.volumes[0])


def test_name_comes_from_the_user_interface_section() -> None:
    (found,) = walk(in_volume(file(section(UI_SECTION, "Demo\0".encode("utf-16-le")), kind=7))).files
    assert (found.name, found.type_name, found.guid) == ("Demo", "driver", NAME)


def test_control_characters_do_not_survive_in_names() -> None:
    (found,) = walk(in_volume(file(section(UI_SECTION, "a\033[31m\n".encode("utf-16-le")), kind=7))).files
    assert found.name.isprintable()


def test_compressed_volume_is_walked() -> None:
    inner = in_volume(file(section(UI_SECTION, "Deep\0".encode("utf-16-le")), kind=7))
    outer = walk(in_volume(file(packed(section(VOLUME_SECTION, inner)))))
    assert [found.name for found in outer.all_files()] == ["", "Deep"]
    assert not list(outer.all_damage())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (in_volume(file(b"", size=0x1000)), "file at 0x48 claims 0x1000 bytes"),
        (in_volume(file(b"", size=3)), "file at 0x48 claims 0x3 bytes"),
        (in_volume(file(struct.pack("<I", 0x999 | 0x10 << 24), kind=7)), "section at 0x0 claims 0x999 bytes"),
        (in_volume(file(struct.pack("<I", 1 | 0x10 << 24), kind=7)), "section at 0x0 claims 0x1 bytes"),
        (
            in_volume(file(section(2, guids.LZMA_SECTION + struct.pack("<HH", 24, 1) + b"junk" * 9))),
            "LZMA stream",
        ),
        (in_volume(file(b""), size=4096)[:1000], "the volume claims 0x1000 bytes, 0x3e8 are there"),
    ],
)
def test_damage_is_named_and_ends_the_walk(data: bytes, message: str) -> None:
    (damage,) = walk(data).all_damage()
    assert message in damage


def test_files_before_damage_are_kept() -> None:
    damaged = walk(in_volume(file(b"", kind=7), file(b"", size=0x9000)))
    assert len(damaged.files) == 1
    assert damaged.damage


def test_stream_that_unpacks_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "LARGEST_UNPACKED", 1 << 20)
    (damage,) = walk(in_volume(file(packed(bytes(2 << 20))))).all_damage()
    assert damage == "LZMA streams unpack to more than 1 MiB"


def test_volumes_within_volumes_are_stopped() -> None:
    data = in_volume()
    for _ in range(20):
        data = in_volume(file(section(VOLUME_SECTION, data)))
    assert list(walk(data).all_damage()) == ["volumes nest deeper than 6"]


def test_endless_files_are_stopped() -> None:
    found = walk(in_volume(*[file(b"", kind=7)] * 5000))
    assert len(found.files) == volume.MAX_FILES
    assert found.damage == "more than 4096 files"


def oracle_files(thing: Any) -> Iterator[bytes]:
    if isinstance(thing, OracleFile) and thing.type != 0xF0:
        yield thing.guid
    for child in getattr(thing, "objects", None) or ():
        if child is not None:
            yield from oracle_files(child)


IMAGES = {path.name: path for path in find_images() if path.suffix == ".fd" and "VARS" not in path.name}


@pytest.mark.skipif(
    not IMAGES, reason="no OVMF installed: install ovmf, or unpack it into $CASEMATE_FIRMWARE"
)
@pytest.mark.parametrize("path", IMAGES.values(), ids=lambda path: path.name)
def test_files_are_those_that_uefi_firmware_finds(path: Path) -> None:
    image = FirmwareImage.load(path)
    for header in image.code_volumes:
        oracle = OracleVolume(image.data[header.offset : header.end])
        assert oracle.process()
        found = read_volume(image.data, header)
        assert [entry.guid for entry in found.all_files()] == list(oracle_files(oracle))
        assert not list(found.all_damage())


def test_images_of_one_command_share_what_they_may_unpack() -> None:
    data = in_volume(file(packed(section(0x19, bytes(2 << 20)))))
    allowance = volume.Allowance(5 << 20)
    damage = [list(read_volumes(data, find_volumes(data), allowance)[0].all_damage()) for _ in range(4)]
    assert damage[:2] == [[], []]
    assert all("with what this command unpacked before it" in said for (said,) in damage[2:])
    assert allowance.unpackable == 0


@pytest.mark.parametrize("mebibytes", [1, 2, 3])
def test_volumes_of_one_image_share_what_they_may_unpack(
    mebibytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "LARGEST_UNPACKED", 2 << 20)
    one = in_volume(file(packed(section(0x19, bytes(mebibytes << 20)))))
    data = one * 10
    headers = find_volumes(data)
    assert len(headers) == 10
    found = read_volumes(data, headers)
    refused = [number for number, each in enumerate(found) if list(each.all_damage())]
    assert refused == list(range(0 if mebibytes > 1 else 1, 10))


@pytest.mark.parametrize("length", [73, 75, 0x101])
def test_odd_length_of_a_header_is_no_volume_that_is_trusted(length: int) -> None:
    data = bytearray(in_volume(file(b""), size=0x1000))
    data[48:50] = length.to_bytes(2, "little")
    header = parse_volume_header(bytes(data), 0)
    assert header is None or header.header_length == length
    assert parse_volume_header(b"x" * 41 + bytes(data), 41) == (header and header._replace(offset=41))
