"""Launches of SNP guests: digests against sev-snp-measure's and goldens, and every image that none can be given."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from support.firmware_images import find_images, require_image

pytest.importorskip("sevsnpmeasure", reason="sev-snp-measure is not installed (./dev test says why)")

from sevsnpmeasure import guest, vcpu_types
from sevsnpmeasure.sev_mode import SevMode

from casemate.abi.sev.snp import SnpPageType
from casemate.digest.cpu_models import model_signature
from casemate.digest.digest_snp import predict_digest, running_digests
from casemate.digest.kernel_hashes import KernelHashes
from casemate.digest.plan_json import plan_from_json, plan_to_json
from casemate.digest.plan_snp import plan_snp
from casemate.digest.steps import SnpPages, UpdateVmsa
from casemate.digest.trace import trace_digest
from casemate.errors import ImageError, SpecError
from casemate.firmware.image import FirmwareImage
from casemate.testing.images import ImageBuilder

VCPUS = (1, 2, 64, 512)
MODELS = ("EPYC-v4", "EPYC-Rome", "EPYC-Milan-v2", "EPYC-Genoa")
FEATURES = (0x1, 0x21)
EPYC = 0x800F12
SECTIONS = ((0x800000, 0x9000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3), (0x80F000, 0x1000, 0x10))
HASHES = KernelHashes.of(b"kernel", b"initrd", "quiet")

OVMF = "11570979c77a0adb515761a702527c8b9e11554e730552621d950988613a3a75c6ff1703f540bd22a9beede8fe7a97e3"
OVMF_DEBUG_SWAP = (
    "c32245cb607f82791b60757bf0b344d9030e5b5a107342e69c09e668ff28aca5af9ca1dc41ce74f5a4e81aeaeb5e7b54"
)
OVMF_FIRMWARE = (
    "ba2c811512ef868474f239a21f7d7057d65a20de87a003c4f116e4fb1573183bfbcd75c3e99b2f558575a5d0094f73c6"
)
CODE = "a479327cbb0b50e876024c2dac7412d4e5e95c7315c1f8b0446f6d3be69fefba50766285475926737e4a70b155252f88"


def builder(*sections: tuple[int, int, int], size: int = 128 << 10) -> ImageBuilder:
    """An image with the usual reset block and area for hashes."""
    return ImageBuilder(size).reset_block(0x80B004).hashes(0x80FC00).sev_metadata(*(sections or SECTIONS))


def image(built: ImageBuilder | None = None) -> FirmwareImage:
    return FirmwareImage.from_bytes((built or builder()).build(), "x.fd")


def suitable_images() -> list[Path]:
    """One file of each content that can be given to an SNP guest."""
    found: dict[bytes, Path] = {}
    for path in find_images():
        candidate = FirmwareImage.load(path)
        if candidate.size % 0x10000 == 0 and candidate.guided_table and candidate.sev_metadata:
            found.setdefault(candidate.data, path)
    return list(found.values())


IMAGES = suitable_images()


@pytest.mark.skipif(
    not IMAGES, reason="no OVMF for SNP installed: install ovmf, or unpack it into $CASEMATE_FIRMWARE"
)
@pytest.mark.parametrize("path", IMAGES, ids=lambda path: "-".join(path.parts[-5:]))
def test_every_digest_equals_that_of_sev_snp_measure(path: Path, tmp_path: Path) -> None:
    firmware = FirmwareImage.load(path)
    kernel, initrd = tmp_path / "vmlinuz", tmp_path / "initrd"
    kernel.write_bytes(b"a kernel" * 1000)
    initrd.write_bytes(b"an initrd" * 1000)
    known = guest.calc_snp_ovmf_hash(str(path))
    assert next(running_digests(plan_snp(firmware, 1, EPYC))) == known
    boots: list[tuple[KernelHashes | None, tuple[str | None, str | None, str | None]]] = [
        (None, (None, None, None))
    ]
    if firmware.sev_hashes is not None and firmware.sev_hashes.is_usable:
        hashes = KernelHashes.of_files(kernel, initrd, "console=ttyS0 ä")
        boots.append((hashes, (str(kernel), str(initrd), "console=ttyS0 ä")))
    for (hashes_of_ours, files), model, vcpus, features in product(boots, MODELS, VCPUS, FEATURES):
        oracle = guest.calc_launch_digest(
            SevMode.SEV_SNP, vcpus, vcpu_types.CPU_SIGS[model], str(path), *files, features, known.hex()
        )
        plan = plan_snp(firmware, vcpus, model_signature(model), hashes_of_ours, features)
        assert predict_digest(plan, known) == oracle, (model, vcpus, features, files)
    whole = guest.calc_launch_digest(SevMode.SEV_SNP, 2, EPYC, str(path), *boots[-1][1], 1)
    assert predict_digest(plan_snp(firmware, 2, EPYC, boots[-1][0])) == whole


def test_debian_12_digests_are_the_known_ones() -> None:
    ovmf, code = (FirmwareImage.load(require_image(name, "bookworm")) for name in ("OVMF.fd", "OVMF_CODE.fd"))
    assert predict_digest(plan_snp(ovmf, 1, EPYC)).hex() == OVMF
    assert predict_digest(plan_snp(ovmf, 1, EPYC, features=0x21)).hex() == OVMF_DEBUG_SWAP
    assert next(running_digests(plan_snp(ovmf, 1, EPYC))).hex() == OVMF_FIRMWARE
    assert predict_digest(plan_snp(code, 1, EPYC)).hex() == CODE


def test_launch_is_firmware_then_sections_in_metadata_order_then_save_areas() -> None:
    plan = plan_snp(image(), 2, EPYC)
    pages = [step for step in plan.steps if isinstance(step, SnpPages)]
    assert [(step.what, step.gpa, step.page_type) for step in pages] == [
        ("firmware", 0xFFFE0000, SnpPageType.NORMAL),
        ("SNP_SEC_MEM", 0x800000, SnpPageType.ZERO),
        ("SNP_SECRETS", 0x80D000, SnpPageType.SECRETS),
        ("CPUID", 0x80E000, SnpPageType.CPUID),
        ("KERNEL_HASHES", 0x80F000, SnpPageType.ZERO),
    ]
    assert [step.vcpu for step in plan.steps if isinstance(step, UpdateVmsa)] == [0, 1]


def test_hashes_lie_in_their_page_where_the_firmware_looks_for_them() -> None:
    (page,) = (step for step in plan_snp(image(), 1, EPYC, HASHES).steps if step.what == "kernel hashes")
    assert isinstance(page, SnpPages)
    assert page.page_type is SnpPageType.NORMAL
    assert page.data == bytes(0xC00) + HASHES.to_bytes() + bytes(0x400 - 176)


def test_unknown_section_is_zero_pages_as_in_qemu_and_an_empty_one_is_nothing() -> None:
    built = builder(*SECTIONS, (0x810000, 0x1000, 0x77), (0, 0, 1))
    names = [step.what for step in plan_snp(image(built), 1, EPYC).steps if isinstance(step, SnpPages)]
    assert names[-1] == "section of type 0x77"


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (ImageBuilder().reset_block(0x80B004), "no SEV metadata"),
        (builder(*SECTIONS[:2]), "no CPUID page"),
        (builder(SECTIONS[0], SECTIONS[2]), "no SNP_SECRETS page"),
        (builder(*SECTIONS[:3], (0x80F000, 0x2000, 0x10)), "one page"),
        (builder(*SECTIONS, (0x80F800, 0x1000, 1)), "whole pages"),
        (builder(*SECTIONS, (0x80E000, 0x1000, 1)), "overlaps"),
        (builder(*SECTIONS, (0xFFFF0000, 0x1000, 1)), "overlaps"),
        (builder(size=0x1B000), "not a multiple of 64 KiB"),
    ],
)
def test_image_that_no_snp_guest_can_be_given_is_refused(built: ImageBuilder, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        plan_snp(image(built), 1, EPYC)
    assert caught.value.exit_code == 4
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (builder(*SECTIONS[:3]), "no page for them"),
        (builder(*SECTIONS[:3], (0x810000, 0x1000, 0x10)), "outside of its SEV metadata section"),
    ],
)
def test_hashes_without_a_page_are_refused(built: ImageBuilder, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        plan_snp(image(built), 1, EPYC, HASHES)


@pytest.mark.parametrize("features", [0, 0x20, -1, 1 << 64])
def test_features_that_no_snp_guest_has_are_refused(features: int) -> None:
    with pytest.raises(SpecError):
        plan_snp(image(), 1, EPYC, features=features)


@pytest.mark.parametrize(
    ("release", "message"), [("bookworm", "no SEV metadata"), ("trixie", "not a multiple of 64 KiB")]
)
def test_split_images_that_no_snp_guest_boots_are_refused(release: str, message: str) -> None:
    firmware = FirmwareImage.load(require_image("OVMF_CODE_4M.fd", release))
    with pytest.raises(ImageError, match=message):
        plan_snp(firmware, 1, EPYC)


def test_plan_survives_json_and_the_trace_ends_in_the_digest() -> None:
    plan = plan_snp(image(), 3, EPYC, HASHES)
    assert plan_from_json(plan_to_json(plan)) == plan
    trace = trace_digest(plan)
    assert trace[-1].running == predict_digest(plan)
    assert [step.kind for step in trace] == ["NORMAL", "ZERO", "SECRETS", "CPUID", "NORMAL", None, None, None]
    known = trace[0].running
    assert trace_digest(plan, known)[-1].running == predict_digest(plan)
