from __future__ import annotations

import pytest

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.sev.commands import SevCommand
from casemate.abi.sev.features import SevFeatures
from casemate.confidential.features import feature_names, parse_features
from casemate.confidential.setup import InitRequest, choose_setup
from casemate.digest.sev_init import SevInit
from casemate.errors import CasemateError, SpecError, UnsupportedError
from casemate.host.clock import GuestClock
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.secure_processor import SevSetup

SWAP = int(SevFeatures.DEBUG_SWAP)
SEV, ES = GuestKind.SEV, GuestKind.SEV_ES

# Era, kind, features asked for, --init; then type of VM, command, features that the save areas really have.
CHOICES: list[tuple[str, GuestKind, int, InitRequest, VmType, SevCommand, int]] = [
    ("linux-6.18", SEV, 0, "auto", VmType.DEFAULT, SevCommand.INIT, 0),
    ("linux-6.18", SEV, 0, "init2", VmType.SEV, SevCommand.INIT2, 0),
    ("linux-6.6", SEV, 0, "auto", VmType.DEFAULT, SevCommand.INIT, 0),
    ("linux-6.18", ES, 0, "auto", VmType.DEFAULT, SevCommand.ES_INIT, 0),
    ("linux-6.18", ES, 0, "legacy", VmType.DEFAULT, SevCommand.ES_INIT, 0),
    ("linux-6.18", ES, 0, "init2", VmType.SEV_ES, SevCommand.INIT2, 0),
    ("linux-6.18", ES, SWAP, "auto", VmType.SEV_ES, SevCommand.INIT2, SWAP),
    ("linux-6.10", ES, SWAP, "auto", VmType.SEV_ES, SevCommand.INIT2, SWAP),
    ("linux-6.6", ES, SWAP, "auto", VmType.DEFAULT, SevCommand.ES_INIT, SWAP),
    ("linux-6.6", ES, SWAP, "legacy", VmType.DEFAULT, SevCommand.ES_INIT, SWAP),
    ("linux-6.6", ES, 0, "auto", VmType.DEFAULT, SevCommand.ES_INIT, SWAP),
]

REFUSALS: list[tuple[str, int, InitRequest, type[CasemateError], str]] = [
    ("linux-6.18", SWAP, "legacy", SpecError, "does not set debug-swap"),
    ("linux-6.8", SWAP, "legacy", SpecError, "does not set debug-swap"),
    ("linux-6.8", SWAP, "auto", UnsupportedError, "no KVM_X86_SEV_ES_VM .debug-swap needs KVM_SEV_INIT2."),
    ("linux-6.6", 0, "init2", UnsupportedError, "no KVM_X86_SEV_ES_VM .asked for."),
    ("linux-6.18", int(SevFeatures.SECURE_TSC), "auto", UnsupportedError, "secure-tsc.*offers debug-swap"),
]


@pytest.mark.parametrize(("era", "kind", "features", "init", "vm_type", "command", "effective"), CHOICES)
def test_setup_is_the_oldest_that_will_do(
    era: str,
    kind: GuestKind,
    features: int,
    init: InitRequest,
    vm_type: VmType,
    command: SevCommand,
    effective: int,
) -> None:
    choice = choose_setup(kind, features, init, ModelHypervisor(GuestClock(), era=era))
    legacy = vm_type is VmType.DEFAULT
    assert choice.sev == SevSetup(vm_type, 0 if legacy else features)
    assert (choice.command, choice.features) == (command, effective)
    assert choice.init is (SevInit.LEGACY if legacy else SevInit.INIT2)
    assert choice.reason


@pytest.mark.parametrize(("era", "features", "init", "error", "says"), REFUSALS)
def test_setup_that_a_kernel_does_not_have_is_refused_with_a_way_out(
    era: str, features: int, init: InitRequest, error: type[CasemateError], says: str
) -> None:
    with pytest.raises(error, match=says) as refused:
        choose_setup(ES, features, init, ModelHypervisor(GuestClock(), era=era))
    assert refused.value.remedy


def test_feature_names_go_there_and_back() -> None:
    names = ["debug-swap", "secure-tsc"]
    assert feature_names(parse_features(names, ES)) == names
    assert parse_features([], SEV) == 0


def test_snp_active_is_nobody_s_to_ask_for() -> None:
    with pytest.raises(SpecError, match="snp-active"):
        parse_features(["snp-active"], ES)
    assert feature_names(int(SevFeatures.SNP_ACTIVE)) == []
