"""Firmware descriptors: which pair is found, what is passed over and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import ImageError, UnsupportedError
from casemate.firmware.descriptors import find_firmware, find_pairs, firmware_roots, parse_descriptor

FOLDER = "usr/share/qemu/firmware"


def descriptor(**changes: Any) -> dict[str, Any]:
    return {
        "description": "test firmware",
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": "/usr/share/OVMF/CODE.fd", "format": "raw"},
            "nvram-template": {"filename": "/usr/share/OVMF/VARS.fd", "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": ["acpi-s3"],
        "tags": [],
    } | changes


def install(root: Path, name: str, content: Any, folder: str = FOLDER) -> Path:
    path = root / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    for file in ("CODE.fd", "VARS.fd"):
        (root / "usr/share/OVMF").mkdir(parents=True, exist_ok=True)
        (root / "usr/share/OVMF" / file).touch()
    return path


def test_first_bootable_descriptor_wins(tmp_path: Path) -> None:
    install(tmp_path, "40-secure.json", descriptor(features=["requires-smm", "secure-boot"]))
    install(tmp_path, "50-ia32.json", descriptor(targets=[{"architecture": "i386", "machines": []}]))
    install(tmp_path, "55-memory.json", descriptor(mapping={"device": "memory", "filename": "/x.fd"}))
    install(tmp_path, "56-bios.json", descriptor(**{"interface-types": ["bios"]}))
    qcow2 = {"filename": "/usr/share/OVMF/CODE.fd", "format": "qcow2"}
    install(tmp_path, "57-qcow2.json", descriptor(mapping={"device": "flash", "executable": qcow2}))
    install(tmp_path, "60-plain.json", descriptor())
    pair = find_firmware([tmp_path])
    assert pair.code == tmp_path / "usr/share/OVMF/CODE.fd"
    assert pair.vars_template == tmp_path / "usr/share/OVMF/VARS.fd"
    assert pair.skipped == (
        "40-secure.json: requires-smm",
        "50-ia32.json: for i386",
        "55-memory.json: mapped as memory, not as flash",
        "56-bios.json: offers bios, not uefi",
        "57-qcow2.json: in format qcow2",
    )


@pytest.mark.parametrize("name", ["/" + "a" * 256, "/a" * 2000])
def test_descriptor_of_a_name_that_no_file_can_have_is_passed_over(tmp_path: Path, name: str) -> None:
    code = {"filename": name, "format": "raw"}
    install(tmp_path, "50-long.json", descriptor(mapping={"device": "flash", "executable": code}))
    install(tmp_path, "60-plain.json", descriptor())
    pair = find_firmware([tmp_path])
    assert pair.why.startswith("60-plain.json")
    assert "is no file name" in pair.skipped[0]


def test_all_pairs_are_listed_in_order(tmp_path: Path) -> None:
    for name in ("60-second.json", "50-first.json"):
        install(tmp_path, name, descriptor(description=name))
    pairs = list(find_pairs([tmp_path], []))
    assert [pair.why for pair in pairs] == ["50-first.json: 50-first.json", "60-second.json: 60-second.json"]


def test_stateless_descriptor_has_no_variables(tmp_path: Path) -> None:
    code = {"filename": "/usr/share/OVMF/CODE.fd", "format": "raw"}
    install(
        tmp_path, "60.json", descriptor(mapping={"device": "flash", "mode": "stateless", "executable": code})
    )
    assert find_firmware([tmp_path]).vars_template is None


def test_etc_hides_the_same_name_in_usr(tmp_path: Path) -> None:
    install(tmp_path, "60-plain.json", descriptor(description="from usr"))
    install(tmp_path, "60-plain.json", descriptor(description="from etc"), "etc/qemu/firmware")
    assert "from etc" in find_firmware([tmp_path]).why


def test_empty_file_hides_a_descriptor(tmp_path: Path) -> None:
    install(tmp_path, "60-plain.json", descriptor())
    install(tmp_path, "60-plain.json", "", "etc/qemu/firmware")
    with pytest.raises(UnsupportedError):
        find_firmware([tmp_path])


def test_missing_file_is_passed_over(tmp_path: Path) -> None:
    install(tmp_path, "60-plain.json", descriptor())
    (tmp_path / "usr/share/OVMF/VARS.fd").unlink()
    with pytest.raises(UnsupportedError, match=r"VARS\.fd is not there"):
        find_firmware([tmp_path])


def test_usual_names_do_without_descriptors(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/OVMF"
    folder.mkdir(parents=True)
    for name in ("OVMF_CODE.fd", "OVMF_VARS.fd", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"):
        (folder / name).touch()
    assert find_firmware([tmp_path]).code.name == "OVMF_CODE_4M.fd"


def test_nothing_installed_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="ovmf") as caught:
        find_firmware([tmp_path])
    assert caught.value.exit_code == 5


def test_roots_are_searched_in_order(tmp_path: Path) -> None:
    for name in ("one", "two"):
        install(tmp_path / name, "60-plain.json", descriptor())
    assert find_firmware([tmp_path / "two", tmp_path / "one"]).code.is_relative_to(tmp_path / "two")


def test_environment_comes_before_the_system() -> None:
    assert firmware_roots({"CASEMATE_FIRMWARE": "/a:/b"}) == (Path("/a"), Path("/b"), Path("/"))
    assert firmware_roots({}) == (Path("/"),)


def test_nul_in_a_file_name_is_refused(tmp_path: Path) -> None:
    mapping = {"device": "flash", "executable": {"filename": "/a\0b", "format": "raw"}}
    with pytest.raises(ImageError, match="no file name"):
        parse_descriptor(install(tmp_path, "60.json", descriptor(mapping=mapping)))


@pytest.mark.parametrize(
    "content", ["{", "[]", "1", '{"mapping": 3}', '{"mapping": {"device": "flash"}}', "\ud800", "[" * 100_000]
)
def test_broken_descriptor_is_refused_and_passed_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / FOLDER / "60.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ImageError):
        parse_descriptor(path)
    with pytest.raises(UnsupportedError, match=r"60\.json"):
        find_firmware([tmp_path])
