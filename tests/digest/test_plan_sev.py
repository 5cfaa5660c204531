"""Planning a launch: order, addresses, and every request that no launch can meet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.abi.guest_kind import GuestKind
from casemate.digest.digest_sev import predict_digest
from casemate.digest.kernel_hashes import KernelHashes
from casemate.digest.plan_json import plan_from_json, plan_to_json
from casemate.digest.plan_sev import plan_sev, plan_sev_es
from casemate.digest.sev_init import SevInit
from casemate.digest.steps import UpdateData, UpdateVmsa
from casemate.digest.trace import trace_digest
from casemate.errors import ImageError, SpecError
from casemate.firmware.image import FirmwareImage
from casemate.testing.images import ImageBuilder, variable_store

EPYC = 0x800F12
HASHES = KernelHashes.of(b"kernel-bytes", b"initrd-bytes", "console=ttyS0")


def firmware(builder: ImageBuilder) -> FirmwareImage:
    return FirmwareImage.from_bytes(builder.build(), "x.fd")


IMAGE = firmware(ImageBuilder().reset_block(0x80B004).hashes(0x80CC00))


def test_sev_es_launch_is_firmware_then_hashes_then_save_areas() -> None:
    plan = plan_sev_es(IMAGE, 2, EPYC, HASHES)
    assert plan.kind is GuestKind.SEV_ES
    firmware_step, hashes_step, *vmsas = plan.steps
    assert isinstance(firmware_step, UpdateData)
    assert (firmware_step.gpa, firmware_step.data) == (0xFFFE0000, IMAGE.data)
    assert isinstance(hashes_step, UpdateData)
    assert (hashes_step.gpa, len(hashes_step.data)) == (0x80CC00, 176)
    assert [step.vcpu for step in vmsas if isinstance(step, UpdateVmsa)] == [0, 1]
    assert vmsas[0].data != vmsas[1].data


def test_sev_launch_has_no_save_areas() -> None:
    assert [step.what for step in plan_sev(IMAGE).steps] == ["firmware"]


def test_two_vcpus_without_reset_block_are_refused() -> None:
    with pytest.raises(ImageError, match="no SEV-ES reset block") as caught:
        plan_sev_es(firmware(ImageBuilder()), 2, EPYC)
    assert caught.value.exit_code == 4
    assert caught.value.remedy


def test_one_vcpu_needs_no_reset_block() -> None:
    assert len(plan_sev_es(firmware(ImageBuilder()), 1, EPYC).steps) == 2


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (ImageBuilder(), "no area for them"),
        (ImageBuilder().hashes(0, 0), "unusable"),
        (ImageBuilder().hashes(0x80CC00, 100), "unusable"),
        (ImageBuilder().hashes(0x80CC01), "unusable"),
    ],
)
def test_hashes_without_usable_area_are_refused(builder: ImageBuilder, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        plan_sev(firmware(builder), HASHES)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (IMAGE.data[:-3], "not a multiple of 4 KiB"),
        (
            ImageBuilder(0x37C000, volume=True).build()[:0x1000],
            "the volume claims 0x37c000 bytes, 0x1000 are there",
        ),
        (IMAGE.data[:0x10000], "no reset vector"),
        (variable_store(), "variable store"),
        (b"QFI\xfb".ljust(0x1000), "qcow2"),
    ],
)
def test_what_is_not_whole_firmware_is_refused(data: bytes, message: str) -> None:
    for plan in (plan_sev, lambda image: plan_sev_es(image, 1, EPYC)):
        with pytest.raises(ImageError, match=message) as caught:
            plan(FirmwareImage.from_bytes(data, "x.fd"))
        assert caught.value.exit_code == 4
        assert caught.value.remedy


@pytest.mark.parametrize("vcpus", [-1, 0, 4097])
def test_impossible_number_of_vcpus_is_refused(vcpus: int) -> None:
    with pytest.raises(SpecError, match="not between 1 and 4096"):
        plan_sev_es(IMAGE, vcpus, EPYC)


@pytest.mark.parametrize(
    ("features", "init"),
    [
        (1, SevInit.INIT2),
        (0x21, SevInit.INIT2),
        (1 << 64, SevInit.INIT2),
        (-1, SevInit.INIT2),
        (0x200, SevInit.LEGACY),
    ],
)
def test_features_that_no_sev_es_guest_has_are_refused(features: int, init: SevInit) -> None:
    with pytest.raises(SpecError):
        plan_sev_es(IMAGE, 1, EPYC, features=features, init=init)


@pytest.mark.parametrize("signature", [-1, 1 << 32])
def test_signature_of_more_than_32_bits_is_refused(signature: int) -> None:
    with pytest.raises(SpecError, match="32-bit"):
        plan_sev_es(IMAGE, 1, signature)


def test_trace_ends_in_the_digest_and_shows_each_step() -> None:
    plan = plan_sev_es(IMAGE, 3, EPYC, HASHES)
    trace = trace_digest(plan)
    assert [step.what for step in trace] == [
        "firmware",
        "kernel hashes",
        *(f"VMSA of vCPU {i}" for i in range(3)),
    ]
    assert trace[-1].running == predict_digest(plan)
    assert trace[0].running == trace[0].sha256
    assert trace[2].gpa is None
    assert len({step.running for step in trace}) == 5


def test_plan_survives_json() -> None:
    plan = plan_sev_es(IMAGE, 4, EPYC, HASHES)
    text = plan_to_json(plan)
    assert plan_from_json(text) == plan
    assert len(text) < 2 * len(IMAGE.data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"format": 1', '"format": 2'),
        ('"kind": "sev-es"', '"kind": "vm"'),
        ('"kind": "sev-es"', '"kind": "sev"'),
        ('"kind": "sev-es"', '"kind": "tdx"'),
        ('"update-vmsa"', '"update-nothing"'),
        ('"gpa": "0xfffe0000"', '"gpa": "here"'),
        ('"contents": {', '"contents": {"00": "AAAA",'),
        ('"steps"', '"stairs"'),
        ("{", "["),
    ],
)
def test_json_that_is_no_plan_is_refused(old: str, new: str) -> None:
    text = plan_to_json(plan_sev_es(IMAGE, 2, EPYC))
    assert old in text
    with pytest.raises(SpecError):
        plan_from_json(text.replace(old, new))


@given(st.text(max_size=20))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        plan_from_json(text)
