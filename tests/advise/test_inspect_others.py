"""What is no firmware, and descriptors with what they offer."""

from __future__ import annotations

import json
import lzma
import random
import shutil
from pathlib import Path

import pytest
from support.firmware_images import firmware_roots, require_image

from casemate.advise.descriptor_check import check_descriptor, is_descriptor
from casemate.advise.inspect import Role, inspect_image
from casemate.cli import main
from casemate.errors import ImageError
from casemate.firmware.image import FirmwareImage

NOISE = random.Random(1).randbytes(540672)
COMPRESSIBLE = b" ".join(str(number * number).encode() for number in range(100000))


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("noise", NOISE),
        ("noise", NOISE[:131072]),
        ("noise", lzma.compress(COMPRESSIBLE, lzma.FORMAT_ALONE)[13:]),
        ("text", b"this is a read me\n" * 1000),
        ("text", b"0123456789abcdef" * 4096),
        ("text", b'{"version": 2, "variables": []}'),
    ],
)
def test_noise_and_text_are_no_firmware(what: str, data: bytes) -> None:
    inspection = inspect_image(FirmwareImage.from_bytes(data, "file"))
    assert inspection.role is Role.NO_FIRMWARE
    assert not inspection.is_usable
    assert not inspection.verdicts
    assert what in inspection.problems[0]


def test_igvm_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    igvm = tmp_path / "guest.igvm"
    igvm.write_bytes(b"IGVM" + bytes(4096))
    assert main(["inspect", str(igvm)]) == 4
    assert "an IGVM file" in capsys.readouterr().out


def descriptors() -> list[Path]:
    return [path for root in firmware_roots() for path in sorted(root.glob("usr/share/qemu/firmware/*.json"))]


def test_descriptors_of_packages_are_right() -> None:
    found = [path for path in descriptors() if "ia32" not in str(path) and "edk2-x86_64" in path.name]
    if not found:
        pytest.skip("no descriptors: unpack Debian's ovmf into $CASEMATE_FIRMWARE")
    for path in found:
        assert is_descriptor(path)
        report = check_descriptor(path)
        assert report.claim is not None
        assert not report.problems, path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A descriptor of a pair, in a tree of its own."""
    folder = tmp_path / "usr/share/qemu/firmware"
    folder.mkdir(parents=True)
    for name in ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"):
        shutil.copy(require_image(name, "bookworm"), tmp_path / name)
    mapping = {
        "device": "flash",
        "executable": {"filename": "/OVMF_CODE_4M.fd", "format": "raw"},
        "nvram-template": {"filename": "/OVMF_VARS_4M.fd", "format": "raw"},
    }
    path = folder / "50-test.json"
    path.write_text(
        json.dumps(
            {
                "description": "test",
                "interface-types": ["uefi"],
                "mapping": mapping,
                "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
                "features": ["amd-sev"],
                "tags": [],
            }
        )
    )
    return path


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("OVMF_CODE_4M.fd", "missing.fd", "no such file"),
        ('"amd-sev"', '"amd-sev", "requires-smm"', "requires-smm"),
        ('"amd-sev"', '"amd-sev", "amd-sev-snp"', "amd-sev-snp"),
        ("/OVMF_VARS_4M.fd", "/OVMF_CODE_4M.fd", "no variable store"),
        ("/OVMF_VARS_4M.fd", "/missing.fd", "no such file"),
        ('"amd-sev"', '"amd-sev", "enrolled-keys"', "no platform key"),
        ('"amd-sev"', '"amd-sev-snq"', "did you mean 'amd-sev-snp'?"),
        ('"format": "raw"}, "nvram', '"format": "qcow2"}, "nvram', "the file is raw"),
        ('"device"', '"mode": "combined", "device"', "mode is combined, and there is an nvram-template"),
        ('"nvram-template"', '"template"', "mode is split, and there is no nvram-template"),
    ],
)
def test_fault_of_a_descriptor_is_found(
    tree: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, fault: str
) -> None:
    assert main(["inspect", str(tree)]) == 0
    tree.write_text(tree.read_text().replace(before, after))
    capsys.readouterr()
    assert main(["inspect", "--json", str(tree)]) == 4
    (entry,) = json.loads(capsys.readouterr().out)["descriptors"]
    assert fault in " ".join((*entry["problems"], *entry["false"]))
    assert not entry["usable"]


@pytest.mark.parametrize(
    "text",
    [
        '{"mapping": 5}',
        '\ufeff{"interface-types": ["uefi"], "mapping": {}}',
        '{"mapping": {"device": "flash"}, "x": [',
        '{"interface-types": 1}',
    ],
)
def test_malformed_descriptor_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(ImageError):
        check_descriptor(path)
    assert main(["inspect", str(path)]) == 4
