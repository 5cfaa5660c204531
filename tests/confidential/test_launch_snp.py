"""SNP launches between the machine's stages: order, prediction against the model's report, and what is refused."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support.confidential_launches import MIB

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.report import AttestationReport
from casemate.abi.sev.snp_pages import CpuidPage
from casemate.abi.sev.status import SevStatus
from casemate.confidential.dry_run import dry_run
from casemate.confidential.dry_run_tdx import dry_run_tdx
from casemate.confidential.preparation import LaunchOptions, PreparedLaunch, prepare
from casemate.confidential.snp import cpuid_corrections
from casemate.confidential.stages import launch
from casemate.digest.digest_snp import predict_digest
from casemate.digest.id_block import make_id_block, sign_id_block
from casemate.digest.plan_snp import plan_snp
from casemate.errors import FirmwareStatusError, ImageError, InsecureError, SpecError, UnsupportedError
from casemate.host.clock import GuestClock
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.snp_processor import SnpFinish
from casemate.machine.console import Console
from casemate.machine.machine import Machine, Stage
from casemate.machine.outcome import Ending, LaunchRecord
from casemate.machine.recorder import Recorder
from casemate.machine.spec import MachineSpec
from casemate.testing.images import ImageBuilder

SECTIONS = ((0x800000, 0x9000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3), (0x80F000, 0x1000, 0x10))
KEY = ec.derive_private_key(5, ec.SECP384R1())


@pytest.fixture
def bios(tmp_path: Path) -> Path:
    path = tmp_path / "snp.fd"
    built = ImageBuilder().reset_block(0x80B004).hashes(0x80FC00).sev_metadata(*SECTIONS)
    path.write_bytes(built.build())
    return path


def snp(path: Path, **more: Any) -> MachineSpec:
    return MachineSpec(bios=path, kind=GuestKind.SNP, memory=16 * MIB).replace(**more)


def host(era: str = "linux-6.18") -> ModelHypervisor:
    return ModelHypervisor(GuestClock(), era=era)


def machine_for(spec: MachineSpec, hypervisor: ModelHypervisor) -> Machine:
    recorder = Recorder()
    return Machine(spec, hypervisor, GuestClock(), Console(recorder), recorder)


def launched(
    spec: MachineSpec, options: LaunchOptions | None = None
) -> tuple[LaunchRecord, PreparedLaunch, Machine]:
    hypervisor = host()
    prepared = prepare(spec, options or LaunchOptions(), hypervisor)
    with machine_for(prepared.spec, hypervisor) as machine:
        return launch(machine, prepared), prepared, machine


def test_launch_goes_in_the_documented_order(bios: Path) -> None:
    record, _, machine = launched(snp(bios), LaunchOptions(launch_only=True))
    assert record.launch is not None
    commands = record.launch["commands"]
    names = [command["command"].removeprefix("KVM_") for command in commands]
    assert names == [
        "SEV_SNP_LAUNCH_START",
        *["SET_MEMORY_ATTRIBUTES"] * 3,
        *["SEV_SNP_LAUNCH_UPDATE"] * 5,
        "SEV_SNP_LAUNCH_FINISH",
    ]
    assert [command["detail"].split(",")[0] for command in commands[4:9]] == [
        "firmware",
        "SNP_SEC_MEM",
        "SNP_SECRETS",
        "CPUID",
        "KERNEL_HASHES",
    ]
    assert machine.stage is Stage.READY
    assert machine.state.ending is Ending.LAUNCHED
    assert machine.recorder.protection_count == 0


@pytest.mark.parametrize("vcpus", [1, 3])
@pytest.mark.parametrize("features", [(), ("debug-swap",)])
def test_report_shows_the_predicted_digest(bios: Path, vcpus: int, features: tuple[str, ...]) -> None:
    options = LaunchOptions(vcpus=vcpus, features=features, report_data=b"n" * 64)
    record, prepared, _ = launched(snp(bios), options)
    assert record.attestation is not None
    report = AttestationReport.from_bytes(record.attestation.report)
    assert bytes(report.measurement) == prepared.digest
    assert bytes(report.report_data) == b"n" * 64
    image = prepared.image
    bits = 0x21 if features else 0x1
    assert prepared.digest == predict_digest(plan_snp(image, vcpus, options.signature, features=bits))


def test_launch_makes_no_keys_of_certificates_that_nobody_wants(
    bios: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = Mock(wraps=rsa.generate_private_key)
    monkeypatch.setattr(rsa, "generate_private_key", generate)
    record, *_ = launched(snp(bios))
    assert record.attestation is not None
    assert not generate.called
    assert record.attestation.certificates.ark.startswith(b"-----BEGIN")
    assert generate.call_count == 2


def test_kernel_is_measured_in_its_page(bios: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bytes(0x1F1) + b"\4" + bytes(0x10) + b"HdrS" + bytes(4096))
    _, plain, _ = launched(snp(bios, kernel=kernel))
    _, measured, _ = launched(snp(bios, kernel=kernel), LaunchOptions(kernel_hashes=True))
    assert plain.digest != measured.digest


def test_expected_guest_starts_and_no_other(bios: Path) -> None:
    digest = prepare(snp(bios), LaunchOptions(), host()).digest
    for expected, is_right in ((digest, True), (digest[:-1] + bytes((digest[-1] ^ 1,)), False)):
        signed = sign_id_block(make_id_block(expected), KEY)
        options = LaunchOptions(snp=SnpFinish(signed.block, signed.auth))
        if is_right:
            launched(snp(bios), options)
            continue
        with pytest.raises(FirmwareStatusError, match="another digest") as caught:
            launched(snp(bios), options)
        assert caught.value.status == SevStatus.BAD_MEASUREMENT


def test_failed_launch_leads_nowhere(bios: Path) -> None:
    hypervisor = host()
    prepared = prepare(snp(bios), LaunchOptions(policy=0x30000 | 9 << 8), hypervisor)
    with machine_for(prepared.spec, hypervisor) as machine:
        with pytest.raises(FirmwareStatusError, match="newer firmware"):
            launch(machine, prepared)
        assert machine.stage is Stage.CREATED
        assert machine.vm.snp_processor is not None
        assert machine.vm.snp_processor.state == "uninit"


def test_interrupted_updates_go_on(bios: Path) -> None:
    hypervisor = host()
    prepared = prepare(snp(bios), LaunchOptions(), hypervisor)
    with machine_for(prepared.spec, hypervisor) as machine:
        machine.vm.snp_processor._pages_per_call = 2  # type: ignore[union-attr]
        record = launch(machine, prepared)
        assert record.launch is not None
        assert record.launch["state"] == "running"


def test_refused_cpuid_is_explained_register_by_register(bios: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hypervisor = host()
    prepared = prepare(snp(bios), LaunchOptions(), hypervisor)
    with machine_for(prepared.spec, hypervisor) as machine:
        processor = machine.vm.snp_processor
        assert processor is not None
        table = processor.cpuid_table()
        entry = next(entry for entry in table.used() if entry.eax_in == 1)
        entry.ecx |= 1 << 24
        monkeypatch.setattr(processor, "cpuid_table", lambda: table)
        with pytest.raises(
            FirmwareStatusError, match=r"leaf 0x1 index 0x0 ecx 0x[0-9a-f]+, and the firmware takes"
        ):
            launch(machine, prepared)


def test_table_of_another_length_is_explained_by_its_count() -> None:
    one, other = CpuidPage(count=3), CpuidPage(count=2)
    page = ctypes.sizeof(CpuidPage)
    assert len(one.to_bytes()) == page
    assert list(cpuid_corrections(one.to_bytes(), other.to_bytes())) == [
        "3 entries, and the firmware takes 2"
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (LaunchOptions(policy=0x10000), SpecError, "bit 17"),
        (LaunchOptions(init="legacy"), SpecError, "type of their own"),
        (LaunchOptions(features=("secure-tsc",)), UnsupportedError, "SNP guests"),
        (LaunchOptions(features=("nothing",)), SpecError, "not known"),
        (LaunchOptions(expected_digest=bytes(48)), InsecureError, "expected is 0000"),
        (LaunchOptions(kernel_hashes=True), SpecError, "no kernel"),
    ],
)
def test_launch_that_cannot_be_is_refused_before_any_vm(
    bios: Path, options: LaunchOptions, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare(snp(bios), options, host())


def test_kernels_without_snp_and_images_without_metadata_are_refused(bios: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="KVM_X86_SNP_VM"):
        prepare(snp(bios), LaunchOptions(), host("linux-6.10"))
    plain = tmp_path / "plain.fd"
    plain.write_bytes(ImageBuilder().reset_block(0x80B004).build())
    with pytest.raises(ImageError, match="no SEV metadata"):
        prepare(snp(plain), LaunchOptions(), host())


def test_section_outside_of_memory_is_refused(bios: Path) -> None:
    with pytest.raises(SpecError, match="has no RAM"):
        launched(snp(bios, memory=8 * MIB))


def test_dry_run_names_what_the_launch_does(bios: Path) -> None:
    hypervisor = host()
    prepared = prepare(snp(bios), LaunchOptions(), hypervisor)
    plan = dry_run(prepared, hypervisor)
    record, _, _ = launched(snp(bios))
    assert record.launch is not None
    wanted = [command["command"] for command in record.launch["commands"] if "SNP" in command["command"]]
    assert [row["command"] for row in plan["ioctls"] if "SNP_L" in row["command"]] == wanted
    assert plan["digest"] == prepared.digest.hex()
    assert "mprotect" not in {row["command"] for row in plan["ioctls"]}


def test_dry_run_of_a_td_tells_every_region_and_mrtd(tmp_path: Path) -> None:
    size = 128 << 10
    base = (1 << 32) - size
    sections = ((0, size, base, size, 0, 1), (0, 0, 0x809000, 0x2000, 2, 0))
    path = tmp_path / "tdx.fd"
    path.write_bytes(ImageBuilder(size).tdx_metadata(sections).build())
    plan = dry_run_tdx(MachineSpec(bios=path, kind=GuestKind.TDX, memory=16 * MIB))
    regions = [row["detail"] for row in plan["ioctls"] if row["command"] == "KVM_TDX_INIT_MEM_REGION"]
    assert regions[0].endswith("KVM_TDX_MEASURE_MEMORY_REGION")
    assert regions[1] == "TD_HOB, 0x2000 bytes at 0x809000"
    assert len(bytes.fromhex(plan["digest"])) == 48
