"""Digests of every installed image against sev-snp-measure's, and against goldens that it made."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.firmware_images import find_images, require_image

pytest.importorskip("sevsnpmeasure", reason="sev-snp-measure is not installed (./dev test says why)")

from sevsnpmeasure import guest, vcpu_types, vmsa
from sevsnpmeasure.sev_mode import SevMode

from casemate.digest.cpu_models import CPU_MODELS, model_signature
from casemate.digest.digest_sev import predict_digest
from casemate.digest.kernel_hashes import KernelHashes
from casemate.digest.plan_sev import plan_sev, plan_sev_es
from casemate.digest.sev_init import SevInit
from casemate.firmware.image import FirmwareImage

VCPUS = (1, 2, 4, 64)
MODELS = ("EPYC-v4", "EPYC-Rome", "EPYC-Milan-v2")

GOLDEN = {
    ("OVMF_CODE.fd", "sev"): "d9b568def24088c92f34b5479e0ed7e44d0a4d4cea8a0f5716719180bba48106",
    ("OVMF_CODE.fd", "init2"): "4c55bc8b9c7804ec80940258127e2aae37f818436a54c55cebe89542bd6dc63f",
    ("OVMF_CODE.fd", "legacy"): "eba1359b4bdf7745d72c9de18582cbb352f81d55c4cedaa428cc7559db8dfbf8",
    ("OVMF_CODE.fd", "debug-swap"): "726a85e06ba5a69b297c40cae7c7f42214f0c573e90a744076d6e5f8239a4f8e",
    ("OVMF_CODE.fd", "two"): "02a0c4a5a76ee32cd799d5a26ffb2f2aff33fb3cc5d494e59b96b7e182add13f",
    ("OVMF_CODE_4M.fd", "sev"): "b157d97b1f69729514feb7f201d2cbe4957f23ab77920e361fe9f822ba49ca4c",
    ("OVMF_CODE_4M.fd", "init2"): "c368889b1cfe678e2ebe3ef5e3ee5717563cae665c09ca366fe52a56b9f62d63",
    ("OVMF_CODE_4M.fd", "legacy"): "e0487cb980f614d6fe5a798e645d3e5e8f4db8fcf8ac560c97d27b6e6db4f8ef",
    ("OVMF_CODE_4M.fd", "debug-swap"): "0b7c8cce59480f8ccc025520a85979179eed13199f6d54a6d3c636ddd8284a21",
    ("OVMF_CODE_4M.fd", "two"): "9322d994f884746b0f5da99a594a7e1d9a72e6366e163603f263d64e470e0dc6",
    ("OVMF.fd", "sev"): "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773",
    ("OVMF.fd", "init2"): "5bcbb5a45e7a9fa4699b6cc8f775382a810ff5a0186d3b90069ba28b1840b38f",
    ("OVMF.fd", "legacy"): "4f3747ba180ed949656ed604d894d59ce850b7c0bbbbc812e695e6225306a59a",
    ("OVMF.fd", "debug-swap"): "7dc5af242f4dfc52d4ee7326660e2b90f6975de766f0f31b03fbe9b905dbdb77",
    ("OVMF.fd", "two"): "5b1d28d8e8b3c2c9939d39bf18a7f05b16935279425c1c1e1ab19109acca9ffd",
}
"""Debian 12's images (2022.11-6+deb12u2), vCPU type EPYC-v4."""


def measurable_images() -> list[Path]:
    """One file of each content that can start SEV-ES guests."""
    found: dict[str, Path] = {}
    for path in find_images():
        image = FirmwareImage.load(path)
        if image.guided_table is not None and image.sev_es_reset:
            found.setdefault(hashlib.sha256(image.data).hexdigest(), path)
    return list(found.values())


IMAGES = measurable_images()


@pytest.fixture
def boot_files(tmp_path: Path) -> tuple[Path, Path]:
    kernel, initrd = tmp_path / "vmlinuz", tmp_path / "initrd"
    kernel.write_bytes(b"a kernel" * 1000)
    initrd.write_bytes(b"an initrd" * 1000)
    return kernel, initrd


@pytest.mark.skipif(
    not IMAGES, reason="no OVMF installed: install ovmf, or unpack it into $CASEMATE_FIRMWARE"
)
@pytest.mark.parametrize("path", IMAGES, ids=lambda path: "-".join(path.parts[-5:]))
def test_every_digest_equals_that_of_sev_snp_measure(path: Path, boot_files: tuple[Path, Path]) -> None:
    image = FirmwareImage.load(path)
    kernel, initrd = boot_files
    variants: list[tuple[KernelHashes | None, tuple[str | None, str | None, str | None]]] = [
        (None, (None, None, None))
    ]
    if image.sev_hashes is not None and image.sev_hashes.is_usable:
        hashes = KernelHashes.of_files(kernel, initrd, "console=ttyS0 ä")
        variants.append((hashes, (str(kernel), str(initrd), "console=ttyS0 ä")))
        variants.append((KernelHashes.of_files(kernel), (str(kernel), None, None)))
    for hashes_of_ours, (kernel_name, initrd_name, append) in variants:
        oracle = guest.sev_calc_launch_digest(str(path), kernel_name, initrd_name, append)
        assert predict_digest(plan_sev(image, hashes_of_ours)) == oracle
        for model in MODELS:
            for vcpus in VCPUS:
                plan = plan_sev_es(image, vcpus, model_signature(model), hashes_of_ours)
                oracle = guest.calc_launch_digest(
                    SevMode.SEV_ES,
                    vcpus,
                    vcpu_types.CPU_SIGS[model],
                    str(path),
                    kernel_name,
                    initrd_name,
                    append,
                    0,
                )
                assert predict_digest(plan) == oracle, (model, vcpus, kernel_name)


@pytest.mark.skipif(
    not IMAGES, reason="no OVMF installed: install ovmf, or unpack it into $CASEMATE_FIRMWARE"
)
@pytest.mark.parametrize("path", IMAGES, ids=lambda path: "-".join(path.parts[-5:]))
@pytest.mark.parametrize("features", [0, 0x20])
def test_legacy_digest_has_save_areas_without_fpu_state(path: Path, features: int) -> None:
    image = FirmwareImage.load(path)
    assert image.sev_es_reset is not None
    areas = vmsa.VMSA(SevMode.SEV_ES, image.sev_es_reset, vcpu_types.CPU_SIGS["EPYC-v4"], features)
    recipe = hashlib.sha256(path.read_bytes())
    for page in areas.pages(3):
        legacy = bytearray(page)
        legacy[0x408:0x40C] = bytes(4)  # MXCSR
        legacy[0x410:0x412] = bytes(2)  # x87 control word
        recipe.update(legacy)
    plan = plan_sev_es(image, 3, model_signature("EPYC-v4"), features=features, init=SevInit.LEGACY)
    assert predict_digest(plan) == recipe.digest()


@pytest.mark.parametrize("name", ["OVMF_CODE.fd", "OVMF_CODE_4M.fd", "OVMF.fd"])
def test_debian_12_digests_are_the_known_ones(name: str) -> None:
    image = FirmwareImage.load(require_image(name, "bookworm"))
    epyc = model_signature("EPYC-v4")
    digests = {
        "sev": predict_digest(plan_sev(image)),
        "init2": predict_digest(plan_sev_es(image, 1, epyc)),
        "legacy": predict_digest(plan_sev_es(image, 1, epyc, init=SevInit.LEGACY)),
        "debug-swap": predict_digest(plan_sev_es(image, 1, epyc, features=0x20)),
        "two": predict_digest(plan_sev_es(image, 2, epyc)),
    }
    assert {key: digest.hex() for key, digest in digests.items()} == {
        key: golden for (image_name, key), golden in GOLDEN.items() if image_name == name
    }


def test_cpu_models_have_the_signatures_of_sev_snp_measure() -> None:
    for name, signature in vcpu_types.CPU_SIGS.items():
        assert model_signature(name) == signature
    assert set(CPU_MODELS) <= set(vcpu_types.CPU_SIGS)
