"""VMs of this machine's KVM for SEV, SEV-ES and SNP guests; plain guests do not load it (Linux api.rst, /dev/sev)."""

from __future__ import annotations

from contextlib import closing

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.platform import FLAG_ES
from casemate.errors import UnsupportedError
from casemate.host.kvm.sev import SevLauncher
from casemate.host.kvm.sev_device import SevDevice
from casemate.host.kvm.snp import SnpLauncher
from casemate.host.secure_processor import SevSetup


def validate_platform(kind: GuestKind) -> None:
    """Whether the secure processor takes such guests. Raises UnsupportedError, with a remedy, if not."""
    with closing(SevDevice()) as device:
        status = device.status()
    if kind is GuestKind.SEV_ES and not status.flags & FLAG_ES:
        raise UnsupportedError(
            "the secure processor is not set up for SEV-ES guests",
            "enable SEV-ES (its ASIDs) in the firmware setup, and load kvm_amd with sev_es=1",
        )


def make_launcher(kind: GuestKind, sev: SevSetup | None) -> SevLauncher | SnpLauncher:
    """What sets up a VM for such a guest. Raises UnsupportedError without /dev/sev."""
    setup = sev or SevSetup()
    if kind is GuestKind.SNP:
        return SnpLauncher(SevDevice(), setup)
    return SevLauncher(SevDevice(), setup, sev_es=kind is GuestKind.SEV_ES)
