"""The machine's own KVM as a host: guests on /dev/kvm, launched by /dev/sev (Linux Documentation/virt/kvm/api.rst)."""

from __future__ import annotations

from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.sev.save_area import DEBUG_SWAP
from casemate.errors import UnsupportedError
from casemate.host.kvm.modules import module_parameter
from casemate.host.kvm.system import DEVICE, KvmSystem
from casemate.host.kvm.vm import KvmVm

if TYPE_CHECKING:
    from casemate.host.capabilities import VmCapabilities
    from casemate.host.secure_processor import SevSetup

_ENCRYPTION = 0x8000001F
"""The CPUID leaf of memory encryption; bits 5:0 of EBX are the position of the C-bit (AMD APM volume 3, E.4.17)."""


class KvmHypervisor:
    """Makes VMs from ``device``, the plain ones for a process that ends with its guest if ``closes_aside``.

    Raises UnsupportedError, with a remedy, if there is no KVM that can be used.
    """

    name = "kvm"
    era: str | None = None
    runs_snp = False

    def __init__(self, device: str = DEVICE, *, closes_aside: bool = False) -> None:
        self._device = device
        self._closes_aside = closes_aside
        KvmSystem(device).close()

    # The rest is asked for confidential guests only.

    @cached_property
    def vm_types(self) -> frozenset[VmType]:
        """What KVM_CREATE_VM takes."""
        with closing(KvmSystem(self._device)) as system:
            return system.vm_types()

    @cached_property
    def vmsa_features(self) -> int:
        """``sev_features`` bits that KVM_SEV_INIT2 takes."""
        with closing(KvmSystem(self._device)) as system:
            return system.vmsa_features()

    @cached_property
    def c_bit(self) -> int | None:
        """Position of the encryption bit."""
        with closing(KvmSystem(self._device)) as system:
            return _c_bit(system)

    @cached_property
    def legacy_vmsa_features(self) -> int:
        """``sev_features`` bits that KVM_SEV_ES_INIT sets by itself."""

        # From Linux 6.6 to 6.9 KVM set debug-swap, where it was enabled, in every SEV-ES guest; since 6.10 in none.
        implicit = VmType.SEV_ES not in self.vm_types and module_parameter("kvm_amd", "debug_swap") == "Y"
        return DEBUG_SWAP if implicit else 0

    def validate_kind(self, kind: GuestKind) -> None:
        """Whether such guests can be launched. Raises UnsupportedError, with a remedy, if not."""
        if kind is GuestKind.PLAIN:
            return
        if kind is GuestKind.TDX:
            raise UnsupportedError(f"{kind} guests are not launched on KVM yet", "leave it at --dry-run")
        if kind is GuestKind.SNP and VmType.SNP not in self.vm_types:
            cause = f"this KVM has no {VmType.SNP.kernel_name}"
            raise UnsupportedError(cause, "use Linux 6.11 or newer on a host set up for SNP, or --host model")

        from casemate.host.kvm.launchers import validate_platform

        validate_platform(kind)

    def expected_capabilities(self, kind: GuestKind, sev: SevSetup | None = None) -> VmCapabilities | None:
        """Only the VM can say."""
        return None

    def create_vm(self, kind: GuestKind, sev: SevSetup | None = None) -> KvmVm:
        """A VM that is ready for its launch, slots and vCPU.

        Raises UnsupportedError for guests that this host cannot launch, HostError if KVM refuses ``sev``.
        """
        self.validate_kind(kind)
        if kind is GuestKind.PLAIN:
            return KvmVm(KvmSystem(self._device), VmType.DEFAULT, closes_aside=self._closes_aside)
        from casemate.host.kvm.launchers import make_launcher

        launcher = make_launcher(kind, sev)
        return KvmVm(KvmSystem(self._device), launcher.setup.vm_type, launcher)


def _c_bit(system: KvmSystem) -> int | None:
    leaves = (leaf.ebx & 0x3F for leaf in system.supported_cpuid() if leaf.function == _ENCRYPTION)
    return next((bit for bit in leaves if bit), None)
