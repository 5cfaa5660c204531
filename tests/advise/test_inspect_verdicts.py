"""Verdicts on every image of Debian's packages: the table below says what is right, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.firmware_images import find_images, require_image

from casemate.abi.guest_kind import GuestKind
from casemate.advise.claims import find_claims
from casemate.advise.inspect import Inspection, Placement, Role, inspect_image, snp_sections
from casemate.firmware.hash_use import HashUse
from casemate.firmware.image import FirmwareImage
from casemate.testing.images import ImageBuilder

FLASH, BIOS = Placement.FLASH, Placement.BIOS

# Usable combinations, as "guest:placement". Builds differ by what they were made for:
#   2M X64        everything in both, TDX only where code and variables are one file
#   IA32X64 4M    Debian 12's 4M build starts in 32-bit PEI: no SNP, no TDX
#   X64 4M        a split CODE of 4M is no --bios file (0x37c000 bytes)
#   IA32          no SEV at all
#   secboot       built with SMM_REQUIRE: nothing that casemate has
#   amdsev        AMD only; inteltdx: TDX and plain only (both reach the boot manager in QEMU without KVM)
EVERY_BIOS = "plain:bios sev:bios sev-es:bios snp:bios"
OLD_BIOS = "plain:bios sev:bios sev-es:bios"
"""Debian 12\'s uses memory before it validated it."""
EVERY_FLASH = "plain:flash sev:flash sev-es:flash"
NOTHING = ""
RIGHT = {
    ("bookworm", "OVMF_CODE.fd"): f"{EVERY_FLASH} {OLD_BIOS}",
    ("bookworm", "OVMF_CODE.secboot.fd"): NOTHING,
    ("bookworm", "OVMF_CODE_4M.fd"): EVERY_FLASH,
    ("bookworm", "OVMF_CODE_4M.secboot.fd"): NOTHING,
    ("bookworm", "OVMF.fd"): f"{EVERY_FLASH} {OLD_BIOS} tdx:bios",
    ("trixie", "OVMF_CODE_4M.fd"): EVERY_FLASH,
    ("trixie", "OVMF_CODE_4M.secboot.fd"): NOTHING,
    ("trixie", "OVMF_CODE_4M.secboot.strictnx.fd"): NOTHING,
    ("trixie", "OVMF.fd"): f"{EVERY_FLASH} {EVERY_BIOS} tdx:bios",
    ("trixie", "OVMF32_CODE_4M.fd"): "plain:flash",
    ("trixie", "OVMF32_CODE_4M.secboot.fd"): NOTHING,
    ("trixie", "OVMF32_CODE_4M.secboot.strictnx.fd"): NOTHING,
    ("sid", "OVMF_CODE_4M.fd"): EVERY_FLASH,
    ("sid", "OVMF_CODE_4M.secboot.fd"): NOTHING,
    ("sid", "OVMF_CODE_4M.secboot.strictnx.fd"): NOTHING,
    ("sid", "OVMF.fd"): f"{EVERY_FLASH} {EVERY_BIOS} tdx:bios",
    ("sid", "OVMF.legacy.fd"): f"{EVERY_FLASH} {EVERY_BIOS} tdx:bios",
    ("sid", "OVMF.amdsev.fd"): f"{EVERY_FLASH} {EVERY_BIOS}",
    ("sid", "OVMF.inteltdx.ms.fd"): "plain:flash plain:bios tdx:bios",
    ("", "bios.bin"): "plain:flash plain:bios",
    ("", "bios-256k.bin"): "plain:flash plain:bios",
    ("", "bios-microvm.bin"): "plain:flash plain:bios",
}

USABLE_HASHES = {("sid", name) for name in ("OVMF_CODE_4M.fd", "OVMF.fd", "OVMF.legacy.fd", "OVMF.amdsev.fd")}


def usable(inspection: Inspection) -> set[str]:
    return {f"{v.guest.value}:{v.placement.value}" for v in inspection.verdicts if v.is_usable}


@pytest.mark.parametrize(("release", "name"), RIGHT, ids=lambda part: part or "any")
def test_image_is_usable_for_what_its_build_supports(release: str, name: str) -> None:
    inspection = inspect_image(FirmwareImage.load(require_image(name, release)))
    assert usable(inspection) == set(RIGHT[release, name].split())
    assert not inspection.problems
    for verdict in inspection.verdicts:
        assert verdict.is_usable or verdict.reasons


@pytest.mark.parametrize(("release", "name"), [key for key in RIGHT if key[0]], ids=lambda part: part)
def test_kernel_hashes_can_be_measured_where_the_area_has_a_base(release: str, name: str) -> None:
    area = FirmwareImage.load(require_image(name, release)).sev_hashes
    assert area is not None
    assert area.is_usable == ((release, name) in USABLE_HASHES or (release == "sid" and "secboot" in name))


@pytest.mark.parametrize(
    ("name", "use"),
    [("OVMF.amdsev.fd", HashUse.COMPARED), ("OVMF.fd", HashUse.IGNORED)],
    ids=lambda part: part,
)
def test_builds_that_compare_kernel_hashes_are_told_from_those_that_do_not(name: str, use: HashUse) -> None:
    """What the guests do is seen in tests/boot/test_boot_kernel_hashes.py."""
    assert inspect_image(FirmwareImage.load(require_image(name, "sid"))).hash_use is use


def test_every_installed_image_is_in_the_table() -> None:
    installed = {path.name for path in find_images() if "VARS" not in path.name}
    assert installed <= {name for _, name in RIGHT}


@pytest.mark.parametrize(
    "path", [path for path in find_images() if "VARS" in path.name], ids=lambda path: path.name
)
def test_every_vars_template_is_a_healthy_store(path: Path) -> None:
    inspection = inspect_image(FirmwareImage.load(path))
    assert inspection.role is Role.VARIABLES
    assert inspection.is_usable
    assert inspection.store is not None
    assert inspection.store.is_authenticated


def test_debian_12_descriptor_is_silent_about_sev_es() -> None:
    image = FirmwareImage.load(require_image("OVMF_CODE_4M.fd", "bookworm"))
    (claim,) = find_claims(inspect_image(image))
    assert claim.silent == ("amd-sev-es",)
    assert claim.false == ()


def test_claims_of_the_amd_only_and_tdx_only_packages_are_true() -> None:
    for name, kind in (("OVMF.amdsev.fd", GuestKind.SNP), ("OVMF.inteltdx.ms.fd", GuestKind.TDX)):
        inspection = inspect_image(FirmwareImage.load(require_image(name, "sid")))
        (claim,) = find_claims(inspection)
        assert (claim.false, claim.silent, claim.device) == ((), (), "memory")
        assert not inspection.lacks[kind]


def test_verdict_on_snp_is_what_the_launch_says() -> None:
    sections = ((0x800000, 0x2000, 1), (0x801000, 0x1000, 2), (0x80E000, 0x1000, 3))
    built = ImageBuilder(volume=True).reset_block(0x80B004).sev_metadata(*sections)
    image = FirmwareImage.from_bytes(built.build(), "x.fd")
    (verdict,) = (v for v in inspect_image(image).verdicts if (v.guest, v.placement) == (GuestKind.SNP, BIOS))
    assert any("overlaps what is launched before it" in reason for reason in verdict.reasons)
    assert snp_sections(image) == []
