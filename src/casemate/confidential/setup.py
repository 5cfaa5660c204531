"""How the VM of a SEV guest is made: its type decides all the rest (QEMU target/i386/sev.c, legacy-vm-type)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.sev.commands import SevCommand
from casemate.abi.sev.features import SevFeatures
from casemate.confidential.features import feature_names
from casemate.digest.sev_init import SevInit
from casemate.errors import SpecError, UnsupportedError
from casemate.host.hypervisor import Hypervisor
from casemate.host.secure_processor import SevSetup

InitRequest = Literal["auto", "legacy", "init2"]
"""The words of ``--init``."""


@dataclass(frozen=True, slots=True)
class SetupChoice:
    """What the VM is made with, and why; ``features`` are those that its save areas will really have."""

    sev: SevSetup
    init: SevInit
    command: SevCommand
    features: int
    reason: str


def choose_setup(kind: GuestKind, features: int, requested: InitRequest, host: Hypervisor) -> SetupChoice:
    """The set-up of a SEV or SEV-ES guest with VMSA ``features`` on ``host``; the oldest that will do under ``auto``.

    Raises SpecError if the request contradicts itself, UnsupportedError if this host cannot.
    """
    by_itself = host.legacy_vmsa_features if kind is GuestKind.SEV_ES else 0
    missing = ", ".join(feature_names(features & ~by_itself))
    if kind is GuestKind.SNP:
        return _snp(features, requested, host)
    if requested == "legacy" and missing:
        cause = f"--init legacy: KVM_SEV_ES_INIT of this host's KVM does not set {missing}"
        raise SpecError(cause, "use --init auto, or leave the feature out")
    if requested == "legacy" or (requested == "auto" and not missing):
        reason = "asked for" if requested == "legacy" else "nothing asked for needs another VM type"
        command = SevCommand.ES_INIT if kind is GuestKind.SEV_ES else SevCommand.INIT
        return SetupChoice(SevSetup(), SevInit.LEGACY, command, by_itself, reason)
    reason = "asked for" if requested == "init2" else f"{missing} needs KVM_SEV_INIT2"
    return _init2(kind, features, reason, host)


def _snp(features: int, requested: InitRequest, host: Hypervisor) -> SetupChoice:
    if requested == "legacy":
        raise SpecError("--init legacy: SNP guests have a VM type of their own", "leave --init out")
    if VmType.SNP not in host.vm_types:
        cause = f"this host's KVM has no {VmType.SNP.kernel_name}"
        raise UnsupportedError(cause, "use Linux 6.11 or newer, on the model --host model:linux-6.11")
    _validate_offered(features, host, GuestKind.SNP)
    sev = SevSetup(VmType.SNP, features)
    features |= SevFeatures.SNP_ACTIVE
    return SetupChoice(
        sev, SevInit.INIT2, SevCommand.INIT2, features, "SNP guests have a VM type of their own"
    )


def _validate_offered(features: int, host: Hypervisor, kind: GuestKind) -> None:
    if unsupported := ", ".join(feature_names(features & ~host.vmsa_features)):
        offered = ", ".join(feature_names(host.vmsa_features)) or "none"
        guests = "SNP" if kind is GuestKind.SNP else "SEV-ES"
        cause = f"--feature {unsupported}: this host's KVM does not give it to {guests} guests"
        raise UnsupportedError(cause, f"it offers {offered}")


def _init2(kind: GuestKind, features: int, reason: str, host: Hypervisor) -> SetupChoice:
    vm_type = VmType.SEV_ES if kind is GuestKind.SEV_ES else VmType.SEV
    if vm_type not in host.vm_types:
        cause = f"this host's KVM has no {vm_type.kernel_name} ({reason})"
        raise UnsupportedError(cause, "use Linux 6.10 or newer, or --init legacy without --feature")
    _validate_offered(features, host, kind)
    return SetupChoice(SevSetup(vm_type, features), SevInit.INIT2, SevCommand.INIT2, features, reason)
