"""What lint finds in files: real images, stores with keys, qcow2, cut by size."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from firmware_images import require_image

from casemate.advise.lint import lint
from casemate.advise.rule import HostFacts
from casemate.errors import ImageError
from casemate.firmware.image import FirmwareImage

SNP = (
    "-accel kvm -cpu EPYC-v4 -machine q35,confidential-guest-support=s"
    " -object sev-snp-guest,id=s,cbitpos=51,reduced-phys-bits=1"
)


def load(path: str) -> FirmwareImage | None:
    try:
        return FirmwareImage.load(path)
    except ImageError:
        return None


def ids(line: str) -> set[str]:
    return {finding.id for finding in lint(shlex.split(line), HostFacts.of_era(), load)[0]}


def pair(code: Path, variables: Path, more: str = "", kind: str = "raw") -> str:
    flash = f"-drive if=pflash,unit=0,readonly=on,format={kind},file={code}"
    return f"qemu-kvm -machine q35 {flash} -drive if=pflash,unit=1,format={kind},file={variables}{more}"


@pytest.mark.parametrize(
    ("name", "release", "is_too_old"),
    [("OVMF.fd", "bookworm", True), ("OVMF_CODE.fd", "bookworm", True), ("OVMF.fd", "trixie", False),
     ("OVMF.amdsev.fd", "sid", False), ("OVMF.legacy.fd", "sid", False)],
)  # fmt: skip
def test_debian_12_has_no_firmware_for_snp_guests(name: str, release: str, is_too_old: bool) -> None:
    found = ids(f"{SNP} -bios {require_image(name, release)} -kernel k")
    assert ("firmware-not-for-snp" in found) is is_too_old


def test_amdsev_build_wants_a_kernel() -> None:
    image = require_image("OVMF.amdsev.fd", "sid")
    assert "amdsev-without-kernel" in ids(f"{SNP} -bios {image}")
    assert "amdsev-without-kernel" not in ids(f"{SNP},kernel-hashes=on -bios {image} -kernel k")
    assert "amdsev-without-kernel" not in ids(f"{SNP} -bios {require_image('OVMF.fd', 'sid-ovmf-generic')}")


@pytest.mark.parametrize("more", [",size=540672", ",size=528K"])
def test_size_is_what_the_guest_sees(tmp_path: Path, more: str) -> None:
    variables = tmp_path / "efidisk"
    variables.write_bytes(require_image("OVMF_VARS_4M.fd", "bookworm").read_bytes().ljust(4 << 20, b"\0"))
    code = require_image("OVMF_CODE_4M.fd", "bookworm")
    assert "flash-pair" not in ids(pair(code, variables, more))
    assert "flash-pair" in ids(pair(code, variables, ",size=131072"))
    assert "flash-pair" in ids(pair(code, variables))


def test_offset_is_skipped(tmp_path: Path) -> None:
    variables = tmp_path / "disk"
    variables.write_bytes(bytes(65536) + require_image("OVMF_VARS_4M.fd", "bookworm").read_bytes())
    code = require_image("OVMF_CODE_4M.fd", "bookworm")
    assert "flash-pair" not in ids(pair(code, variables, ",offset=64K"))
    assert "flash-pair" in ids(pair(code, variables))


def test_qcow2_is_read_through(tmp_path: Path) -> None:
    program = shutil.which("qemu-img")
    if program is None:
        pytest.skip("no qemu-img (Debian: qemu-utils)")
    made = {}
    for name in ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "OVMF_VARS.fd"):
        made[name] = tmp_path / f"{name}.qcow2"
        command = [
            program,
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            str(require_image(name, "bookworm")),
            str(made[name]),
        ]
        subprocess.run(command, check=True, capture_output=True)
    assert ids(pair(made["OVMF_CODE_4M.fd"], made["OVMF_VARS_4M.fd"], kind="qcow2")) == set()
    assert "flash-pair" in ids(pair(made["OVMF_CODE_4M.fd"], made["OVMF_VARS.fd"], kind="qcow2"))
    assert "flash-swapped" in ids(pair(made["OVMF_VARS_4M.fd"], made["OVMF_CODE_4M.fd"], kind="qcow2"))
    backed = tmp_path / "backed.qcow2"
    command = [
        program,
        "create",
        "-f",
        "qcow2",
        "-b",
        made["OVMF_VARS_4M.fd"].name,
        "-F",
        "qcow2",
        str(backed),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert ids(pair(made["OVMF_CODE_4M.fd"], backed, kind="qcow2")) == set()
    made["OVMF_VARS_4M.fd"].unlink()
    assert "flash-unreadable" in ids(pair(made["OVMF_CODE_4M.fd"], backed, kind="qcow2"))


def test_keys_are_judged_by_contents_not_by_name(tmp_path: Path) -> None:
    code = require_image("OVMF_CODE_4M.fd", "bookworm")
    keyless, enrolled = tmp_path / "VARS.ms.fd", tmp_path / "plain.fd"
    shutil.copy(require_image("OVMF_VARS_4M.fd", "bookworm"), keyless)
    shutil.copy(require_image("OVMF_VARS_4M.ms.fd", "bookworm"), enrolled)
    assert "secure-boot-without-smm" not in ids(pair(code, keyless))
    assert "secure-boot-without-smm" in ids(pair(code, enrolled))
    secure = require_image("OVMF_CODE_4M.secboot.fd", "bookworm")
    assert "secure-boot-without-smm" not in ids(pair(secure, enrolled))
    snakeoil = require_image("OVMF_VARS_4M.snakeoil.fd", "bookworm")
    assert "secure-boot-without-smm" in ids(pair(code, snakeoil))


def test_remedy_for_what_is_no_store_is_a_template(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel.fd"
    kernel.write_bytes(b"\x90" * 540672)
    line = pair(require_image("OVMF_CODE_4M.fd", "bookworm"), kernel)
    (found,) = [one for one in lint(shlex.split(line), HostFacts.of_era(), load)[0] if one.id == "flash-pair"]
    assert "VARS template" in found.remedy
    assert "repair" not in found.remedy
