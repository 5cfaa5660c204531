from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kernel_eras import BEHAVIOURS, ERAS, KernelEra, find_era
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.kvm.write_outcome import WriteOutcome
from casemate.address import Gpa, GuestRange, Hva
from casemate.errors import HostError, SpecError, UnsupportedError
from casemate.host.clock import GuestClock
from casemate.host.exits import KvmInternalError
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.model.vm import ModelVm
from casemate.host.secure_processor import SevSetup, VcpuReset
from casemate.host.slots import MemorySlot

PLAIN, SEV, ES, SNP, TDX = GuestKind
DEFAULT = SevSetup()
SEV_TYPE, ES_TYPE = SevSetup(VmType.SEV), SevSetup(VmType.SEV_ES)

YES, NO, ABSENT = True, False, None

# Linux release; then the read-only capability (and slot) of: default type plain, with SEV_INIT, with SEV_ES_INIT,
# SEV type, SEV-ES type; then the features that SEV_ES_INIT sets and INIT2 takes.
EXPECTED = [
    ("linux-6.1", (YES, YES, YES, ABSENT, ABSENT), 0, 0),
    ("linux-6.6", (YES, YES, YES, ABSENT, ABSENT), 0x20, 0),
    ("linux-6.8", (YES, YES, YES, ABSENT, ABSENT), 0, 0),
    ("linux-6.10", (YES, YES, YES, YES, YES), 0, 0x20),
    ("linux-6.11", (YES, YES, YES, YES, NO), 0, 0x20),
    ("linux-6.16", (YES, YES, YES, YES, NO), 0, 0x20),
    ("linux-6.18", (YES, YES, YES, YES, NO), 0, 0x20),
]
COLUMNS = [(PLAIN, DEFAULT), (SEV, DEFAULT), (ES, DEFAULT), (SEV, SEV_TYPE), (ES, ES_TYPE)]


@contextmanager
def one_page() -> Iterator[Hva]:
    memory = mmap.mmap(-1, 4096)
    yield Hva(ctypes.addressof(ctypes.c_char.from_buffer(memory)))


def host(era: str | KernelEra) -> ModelHypervisor:
    return ModelHypervisor(GuestClock(), era=era)


def test_every_era_is_in_the_table_once() -> None:
    assert [era for era, *_ in EXPECTED] == list(ERAS)


@pytest.mark.parametrize(("era", "answers", "legacy", "init2"), EXPECTED, ids=ERAS)
def test_era_answers_as_the_kernel_did(
    era: str, answers: tuple[bool | None, ...], legacy: int, init2: int
) -> None:
    model = host(era)
    assert model.era == era
    assert (model.legacy_vmsa_features, model.vmsa_features) == (legacy, init2)
    for (kind, setup), answer in zip(COLUMNS, answers, strict=True):
        if answer is ABSENT:
            with pytest.raises(HostError, match=f"{era} has no {setup.vm_type.kernel_name}") as refused:
                model.create_vm(kind, setup)
            assert refused.value.errno == errno.EINVAL
            continue
        with closing(model.create_vm(kind, setup)) as vm:
            assert vm.capabilities.readonly_memory is answer
            assert vm.capabilities.has_protected_state is (kind is ES)
            assert vm.capabilities == model.expected_capabilities(kind, setup)
            assert takes_readonly_slot(vm) is answer


def takes_readonly_slot(vm: ModelVm) -> bool:
    with one_page() as hva:
        try:
            vm.add_slot(MemorySlot(0, GuestRange(Gpa(0), 4096), hva, readonly=True))
        except HostError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        vm.delete_slot(0)
        return True


def test_capability_and_slot_could_disagree() -> None:
    # Between 66155de93bcf and d30d9ee94cc0 the capability said 1 and the slot was refused.
    between = find_era("linux-6.11")._replace(protected_readonly_memory=True)
    with closing(host(between).create_vm(ES, ES_TYPE)) as vm:
        assert vm.capabilities.readonly_memory
        assert not takes_readonly_slot(vm)


@pytest.mark.parametrize(
    ("era", "kind", "features", "taken"),
    [
        ("linux-6.18", ES, 0x20, True),
        ("linux-6.18", ES, 0x200, False),
        ("linux-6.18", ES, 0x21, False),
        ("linux-6.18", SEV, 0x20, False),
        ("linux-6.10", ES, 0x20, True),
    ],
)
def test_init2_takes_the_features_of_its_era(era: str, kind: GuestKind, features: int, taken: bool) -> None:
    setup = SevSetup(VmType.SEV_ES if kind is ES else VmType.SEV, features)
    if taken:
        host(era).create_vm(kind, setup).close()
        return
    with pytest.raises(HostError, match=f"KVM_SEV_INIT2.*{features:#x}"):
        host(era).create_vm(kind, setup)


def test_kinds_that_are_not_modelled_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="no TDX guests"):
        host("linux-6.18").create_vm(TDX)


def test_unknown_era_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"linux-6.1, .*linux-6.18"):
        find_era("linux-5.15")


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.field)
def test_every_behaviour_has_a_source_and_says_who_saw_it(behaviour: object) -> None:
    row = next(row for row in BEHAVIOURS if row is behaviour)
    assert len(row.what) > 20
    assert any(mark in row.source for mark in (".c", ".h", ".rst", "Linux 6.", "66155de93bcf"))
    assert row.seen == "source only" or "kvm_amd" in row.seen
    assert row.values[0][0] == ERAS[0]
    assert [ERAS.index(since) for since, _ in row.values] == sorted(
        {ERAS.index(since) for since, _ in row.values}
    )


def test_every_field_of_an_era_is_a_row_of_the_table() -> None:
    assert set(KernelEra._fields) == {row.field for row in BEHAVIOURS} | {"name"}


def test_system_always_says_yes() -> None:
    assert all(find_era(era).system_readonly_memory for era in ERAS)


def test_sealed_guest_livelocks_on_readonly_slots_in_every_era() -> None:
    assert {find_era(era).protected_write_to_readonly_slot for era in ERAS} == {WriteOutcome.LIVELOCK}
    assert {find_era(era).write_to_readonly_mapping for era in ERAS} == {WriteOutcome.EFAULT}


class NoBus:
    def read_port(self, port: int, size: int) -> int:
        return 0

    def write_port(self, port: int, size: int, value: int) -> None:
        pass

    def read_mmio(self, gpa: int, size: int) -> int:
        return 0

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        pass


def test_confidential_guest_does_not_run_before_its_launch() -> None:
    with closing(host("linux-6.18").create_vm(SEV, SEV_TYPE)) as vm:
        vm_exit = vm.create_vcpu(NoBus(), None).run()
        assert isinstance(vm_exit, KvmInternalError)
        assert "launch" in vm_exit.detail


@pytest.mark.parametrize("kind", [SEV, ES])
def test_host_sees_no_code_of_a_confidential_guest_and_no_registers_of_a_sealed_one(kind: GuestKind) -> None:
    with closing(host("linux-6.18").create_vm(kind, DEFAULT)) as vm:
        vcpu = vm.create_vcpu(NoBus(), None)
        assert vcpu.code_at_rip() is None
        assert (vcpu.rip() is None) is (kind is ES)


def test_save_areas_belong_to_sev_es() -> None:
    with closing(host("linux-6.18").create_vm(SEV, SEV_TYPE)) as vm:
        assert vm.secure_processor is not None
        vm.secure_processor.launch_start(1, None)
        with pytest.raises(HostError, match="no SEV-ES guest") as refused:
            vm.secure_processor.launch_update_vmsa([VcpuReset(0xFFFFFFF0, 0)])
        assert refused.value.errno == errno.ENOTTY


def test_plain_vm_has_no_secure_processor() -> None:
    with closing(host("linux-6.18").create_vm(PLAIN)) as vm:
        assert vm.secure_processor is None
