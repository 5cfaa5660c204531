"""The machine's own KVM as a host: plain guests on /dev/kvm (Linux Documentation/virt/kvm/api.rst)."""

from __future__ import annotations

from contextlib import closing

from casemate.abi.kvm.vm_types import VmType
from casemate.errors import UnsupportedError
from casemate.host.capabilities import VmCapabilities
from casemate.host.guest_kind import GuestKind
from casemate.host.kvm.system import DEVICE, KvmSystem
from casemate.host.kvm.vm import KvmVm
from casemate.host.secure_processor import SevSetup


class KvmHypervisor:
    """Makes VMs from ``device``. Raises UnsupportedError, with a remedy, if there is no KVM that can be used."""

    name = "kvm"
    era: str | None = None
    legacy_vmsa_features = 0
    c_bit: int | None = None

    def __init__(self, device: str = DEVICE) -> None:
        self._device = device
        with closing(KvmSystem(device)) as system:
            self.vm_types = system.vm_types()
            self.vmsa_features = system.vmsa_features()

    def validate_kind(self, kind: GuestKind) -> None:
        """Raises UnsupportedError for confidential guests."""
        if kind.is_confidential:
            raise UnsupportedError(f"{kind} guests are not launched on KVM yet", "use --host model")

    def expected_capabilities(self, kind: GuestKind, sev: SevSetup | None = None) -> VmCapabilities | None:
        """Only the VM can say."""
        return None

    def create_vm(self, kind: GuestKind, sev: SevSetup | None = None) -> KvmVm:
        """A VM that is ready for slots and its vCPU. Raises UnsupportedError for confidential guests."""
        self.validate_kind(kind)
        return KvmVm(KvmSystem(self._device), VmType.DEFAULT)
