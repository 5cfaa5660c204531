"""An SNP launch on the model: states, refusals by their status, ID blocks, reports; KVM's rules in front of them."""

from __future__ import annotations

import ctypes
import hashlib
from errno import EAGAIN, EEXIST, EINVAL

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_pem_x509_certificate

pytest.importorskip("omne_attest", reason="omne-attest is not installed (./dev test says why)")

from omne_attest import snp as judge

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kernel_eras import ERAS, find_era
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.sev.commands import GuestState
from casemate.abi.sev.report import AttestationReport
from casemate.abi.sev.snp import SnpPageType
from casemate.abi.sev.snp_pages import CpuidPage, SecretsPage
from casemate.abi.sev.status import SevStatus
from casemate.address import PAGE_SIZE, Gpa, GuestRange, Hva
from casemate.digest.digest_snp import predict_digest
from casemate.digest.id_block import Identity, SignedIdBlock, make_id_block, sign_id_block
from casemate.digest.plan import LaunchPlan
from casemate.digest.sev_init import SevInit
from casemate.digest.steps import SnpPages, UpdateVmsa
from casemate.digest.vmsa_pages import vmsa_pages
from casemate.errors import FirmwareStatusError, HostError
from casemate.host.clock import GuestClock
from casemate.host.model.cpu.processor import everything
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.model.snp.rmp import READ, Fault, GuestPage, PageState
from casemate.host.model.snp.snp import ASID, ModelSnp
from casemate.host.secure_processor import SevSetup, VcpuReset
from casemate.host.slots import MemorySlot
from casemate.host.snp_processor import SnpFinish, SnpUpdate
from casemate.memory.backing import Backing

POLICY, FEATURES, EPYC = 0x30000, 0x21, 0x800F12
MEMORY = GuestRange(Gpa(0x10000), 0x20000)
VCPUS = (VcpuReset(0xFFFFFFF0, EPYC), VcpuReset(0x80B004, EPYC))
KEY, AUTHOR = (ec.derive_private_key(number, ec.SECP384R1()) for number in (7, 11))
BUFFER = ctypes.create_string_buffer(0x6000)
HVA = Hva(-(-ctypes.addressof(BUFFER) // PAGE_SIZE) * PAGE_SIZE)
CONTENTS = bytes(range(256)) * 32
PRIVATE: dict[int, bytes] = {}
"""What was launched last, by address."""


def started(**options: int) -> ModelSnp:
    processor = ModelSnp(SevSetup(VmType.SNP, 0x20), PRIVATE.__setitem__, everything(), **options)
    processor.launch_start(POLICY, b"\x05" * 16)
    processor.set_private(MEMORY)
    ctypes.memmove(HVA, CONTENTS, len(CONTENTS))
    return processor


def update(page_type: SnpPageType = SnpPageType.NORMAL, gpa: int = 0x10000, size: int = 0x2000) -> SnpUpdate:
    return SnpUpdate(Gpa(gpa), HVA, size, page_type)


def launched(finish: SnpFinish | None = None) -> ModelSnp:
    processor = started()
    processor.launch_update(update())
    processor.launch_update(update(SnpPageType.ZERO, 0x12000, 0x1000))
    processor.launch_update(update(SnpPageType.SECRETS, 0x13000, 0x1000))
    processor.launch_finish(finish or SnpFinish(), VCPUS)
    return processor


def plan() -> LaunchPlan:
    """What ``launched`` launches."""
    pages = vmsa_pages(2, 0x80B004, EPYC, FEATURES, SevInit.INIT2)
    return LaunchPlan(
        GuestKind.SNP,
        (
            SnpPages("firmware", Gpa(0x10000), 0x2000, SnpPageType.NORMAL, CONTENTS),
            SnpPages("zero", Gpa(0x12000), 0x1000, SnpPageType.ZERO),
            SnpPages("secrets", Gpa(0x13000), 0x1000, SnpPageType.SECRETS),
            *(UpdateVmsa(index, page) for index, page in enumerate(pages)),
        ),
    )


def identity(digest: bytes, policy: int = POLICY) -> SignedIdBlock:
    block = make_id_block(digest, Identity(policy, guest_svn=3, image_id=b"i" * 16))
    return sign_id_block(block, KEY, AUTHOR)


def with_id(signed: SignedIdBlock, block: bytes | None = None, auth: bytes | None = None) -> SnpFinish:
    return SnpFinish(block or signed.block, auth or signed.auth, has_author_key=True, host_data=b"h" * 32)


def test_digest_is_the_predicted_one() -> None:
    assert launched().psp.digest == predict_digest(plan())


def test_pages_are_the_guests_alone_once_they_are_launched() -> None:
    processor = launched()
    assert processor.state is GuestState.RUNNING
    assert PRIVATE[0x10000] + PRIVATE[0x11000] == CONTENTS
    assert PRIVATE[0x12000] == bytes(PAGE_SIZE)
    secrets = SecretsPage.from_bytes(PRIVATE[0x13000])
    assert bytes(secrets.gosvw) == b"\x05" * 16
    assert len({bytes(secrets.vmpck0), bytes(secrets.vmpck1), bytes(32)}) == 3
    assert processor.rmp[0x10].state is PageState.GUEST_VALID
    assert processor.rmp.host_store(0x10) is Fault.HOST_PAGE_FAULT
    assert processor.rmp.access(GuestPage(0x10, 0x10000, ASID), READ) is None
    assert processor.rmp.access(GuestPage(0x14, 0x14000, ASID), READ) is Fault.NESTED


def test_interrupted_update_goes_on_where_it_was() -> None:
    processor = started(pages_per_call=1)
    request = update()
    with pytest.raises(HostError) as caught:
        processor.launch_update(request)
    assert caught.value.errno == EAGAIN
    assert (request.gpa, request.hva, request.size) == (0x11000, HVA + 0x1000, 0x1000)
    processor.launch_update(request)
    assert PRIVATE[0x11000] == CONTENTS[0x1000:]


def test_cpuid_table_is_taken_or_handed_back_corrected() -> None:
    processor = started()
    table = processor.cpuid_table()
    wanted = table.to_bytes()
    leaf = next(entry for entry in table.used() if entry.eax_in == 1)
    leaf.ecx |= 1 << 24
    ctypes.memmove(HVA, table.to_bytes(), CpuidPage.SIZE)
    request = update(SnpPageType.CPUID, 0x14000, 0x1000)
    with pytest.raises(FirmwareStatusError) as caught:
        processor.launch_update(request)
    assert caught.value.status == SevStatus.INVALID_PARAM
    assert ctypes.string_at(HVA, CpuidPage.SIZE) == wanted
    assert processor.rmp[0x14].state is PageState.HYPERVISOR
    processor.launch_update(request)
    assert PRIVATE[0x14000][: CpuidPage.SIZE] == wanted


@pytest.mark.parametrize(
    ("request_", "errno"),
    [
        (update(size=0x1800), EINVAL),
        (update(gpa=0x10800), EINVAL),
        (update(size=0), EINVAL),
        (update(SnpPageType.VMSA), EINVAL),
        (update(gpa=0x30000), EINVAL),
        (update(gpa=0x11000), EEXIST),
    ],
)
def test_kernel_refuses_what_it_can_see_by_itself(request_: SnpUpdate, errno: int) -> None:
    processor = started()
    processor.launch_update(update(gpa=0x11000, size=0x1000))
    with pytest.raises(HostError) as caught:
        processor.launch_update(request_)
    assert caught.value.errno == errno


@pytest.mark.parametrize("policy", [0x20000, 0x10000, 0x130000])
def test_kernel_refuses_policies_without_smt_or_of_one_socket(policy: int) -> None:
    with pytest.raises(HostError) as caught:
        ModelSnp(SevSetup(VmType.SNP), PRIVATE.__setitem__, everything()).launch_start(policy, bytes(16))
    assert caught.value.errno == EINVAL


@pytest.mark.parametrize(
    ("policy", "status"),
    [(0x30000 | 2 << 8, SevStatus.POLICY_FAILURE), (0x30000 | 1 << 40, SevStatus.INVALID_PARAM)],
)
def test_firmware_refuses_policies_that_it_cannot_keep(policy: int, status: SevStatus) -> None:
    with pytest.raises(FirmwareStatusError) as caught:
        ModelSnp(SevSetup(VmType.SNP), PRIVATE.__setitem__, everything()).launch_start(policy, bytes(16))
    assert caught.value.status == status


def test_commands_out_of_order_are_refused() -> None:
    fresh = ModelSnp(SevSetup(VmType.SNP), PRIVATE.__setitem__, everything())
    fresh.set_private(MEMORY)
    done = launched()
    for call in (
        lambda: fresh.launch_update(update()),
        lambda: fresh.launch_finish(SnpFinish(), ()),
        lambda: fresh.guest_report(bytes(64)),
        lambda: done.launch_start(POLICY, bytes(16)),
        lambda: done.launch_update(update(gpa=0x15000)),
        lambda: done.launch_finish(SnpFinish(), ()),
    ):
        with pytest.raises(FirmwareStatusError) as caught:
            call()
        assert caught.value.status == SevStatus.INVALID_GUEST_STATE


def test_id_block_of_the_right_guest_is_accepted() -> None:
    assert launched(with_id(identity(predict_digest(plan())))).state is GuestState.RUNNING


def test_every_bit_of_the_expected_digest_counts() -> None:
    digest = predict_digest(plan())
    for bit in (0, 100, 383):
        changed = bytes(
            byte ^ (1 << bit % 8 if index == bit // 8 else 0) for index, byte in enumerate(digest)
        )
        with pytest.raises(FirmwareStatusError, match="expects another digest") as caught:
            launched(with_id(identity(changed)))
        assert caught.value.status == SevStatus.BAD_MEASUREMENT


def flipped(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes((data[offset] ^ 1,)) + data[offset + 1 :]


@pytest.mark.parametrize(
    ("in_block", "offset", "status", "message"),
    [
        (True, 0, SevStatus.BAD_SIGNATURE, "the ID block's"),
        (True, 80, SevStatus.INVALID_PARAM, "version 0"),
        (False, 0x40, SevStatus.BAD_SIGNATURE, "the ID block's"),
        (False, 0x244, SevStatus.BAD_SIGNATURE, "the ID block's"),
        (False, 0x680, SevStatus.BAD_SIGNATURE, "the ID key's"),
        (False, 0x884, SevStatus.BAD_SIGNATURE, "the ID key's"),
        (False, 0, SevStatus.BAD_SIGNATURE, "the ID block's"),
        (False, 4, SevStatus.BAD_SIGNATURE, "the ID key's"),
    ],
)
def test_one_bit_changed_is_refused_with_its_status(
    in_block: bool, offset: int, status: SevStatus, message: str
) -> None:
    signed = identity(predict_digest(plan()))
    block, auth = (flipped(signed.block, offset), None) if in_block else (None, flipped(signed.auth, offset))
    with pytest.raises(FirmwareStatusError, match=message) as caught:
        launched(with_id(signed, block, auth))
    assert caught.value.status == status


def test_id_block_for_another_policy_is_refused() -> None:
    with pytest.raises(FirmwareStatusError) as caught:
        launched(with_id(identity(predict_digest(plan()), policy=0xB0000)))
    assert caught.value.status == SevStatus.POLICY_FAILURE


def test_report_shows_guest_and_owner_and_another_implementation_accepts_it() -> None:
    signed = identity(predict_digest(plan()))
    data = hashlib.sha512(b"nonce").digest()
    processor = launched(with_id(signed))
    given, chain = processor.guest_report(data), processor.certificates()
    report = AttestationReport.from_bytes(given)
    assert bytes(report.measurement) == predict_digest(plan())
    assert (report.policy, report.guest_svn, bytes(report.image_id)) == (POLICY, 3, b"i" * 16)
    assert (bytes(report.host_data), bytes(report.report_data)) == (b"h" * 32, data)
    assert bytes(report.id_key_digest) == signed.id_key_digest
    assert bytes(report.author_key_digest) == signed.author_key_digest
    assert report.flags == 1
    vcek, ask, ark = (to_der(pem) for pem in (chain.vcek, chain.ask, chain.ark))
    policy = judge.Policy(measurement=predict_digest(plan()), report_data=data)
    judge.verify(given, vcek, ask, ark, hashlib.sha256(ark).digest(), policy)
    with pytest.raises(judge.Fail, match="signature"):
        judge.verify(flipped(given, 0x90), vcek, ask, ark, hashlib.sha256(ark).digest(), policy)


def to_der(pem: bytes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def test_chain_says_that_it_is_modelled() -> None:
    certificate = load_pem_x509_certificate(launched().certificates().ark)
    assert "casemate model (no hardware)" in certificate.subject.rfc4514_string()


@pytest.mark.parametrize("era", [era for era in ERAS if VmType.SNP in find_era(era).vm_types])
def test_readonly_slot_that_older_monitors_asked_for_is_einval_though_the_system_says_yes(era: str) -> None:
    assert find_era(era).system_readonly_memory
    vm = ModelHypervisor(GuestClock(), era=era).create_vm(GuestKind.SNP, SevSetup(VmType.SNP))
    backing = Backing("firmware", 0x1000)
    hva, where = backing.writable.hva, GuestRange(Gpa(0xFFFF0000), 0x1000)
    try:
        assert not vm.capabilities.readonly_memory
        with pytest.raises(HostError) as caught:
            vm.add_slot(MemorySlot(2, where, hva, readonly=True))
        assert caught.value.errno == EINVAL
        vm.add_slot(MemorySlot(2, where, hva))
    finally:
        vm.close()
        backing.close()


def test_kernels_before_6_11_have_no_snp_guests() -> None:
    with pytest.raises(HostError) as caught:
        ModelHypervisor(GuestClock(), era="linux-6.10").create_vm(GuestKind.SNP, SevSetup(VmType.SNP))
    assert caught.value.errno == EINVAL
