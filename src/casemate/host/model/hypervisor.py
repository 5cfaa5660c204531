"""A KVM host in software, without privilege or special CPU; what it shows is modelled (docs/design/model.md)."""

from __future__ import annotations

from errno import EINVAL
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kernel_eras import NEWEST, KernelEra, find_era
from casemate.abi.x86.cpu_models import CpuChoice
from casemate.errors import HostError, UnsupportedError
from casemate.host.capabilities import VmCapabilities
from casemate.host.clock import GuestClock
from casemate.host.model.cpu.cpuid import C_BIT, CpuidTable
from casemate.host.model.vm import ModelVm, answer_capabilities
from casemate.host.secure_processor import SevSetup

if TYPE_CHECKING:
    from casemate.host.model.sev.platform import ModelPlatform


class ModelHypervisor:
    """Makes modelled VMs as the kernels of one era did.

    ``lock_limit`` is the bytes that may be pinned, None for any. ``platform`` is whose secure processor it is,
    ``cpu`` the processor of the VMs, or else a usual one.
    """

    name = "model"
    runs_snp = True
    c_bit: int | None = C_BIT

    def __init__(
        self,
        clock: GuestClock,
        *,
        era: str | KernelEra = NEWEST,
        lock_limit: int | None = None,
        raises_vc: bool = True,
        platform: ModelPlatform | Path | None = None,
        cpu: CpuChoice | None = None,
    ) -> None:
        self._cpu = cpu
        self._platform = platform
        self._raises_vc = raises_vc
        self._clock = clock
        self._era = find_era(era) if isinstance(era, str) else era
        self._lock_limit = lock_limit
        self.era: str | None = self._era.name
        self.vm_types = self._era.vm_types
        self.vmsa_features = self._era.init2_vmsa_features
        self.legacy_vmsa_features = self._era.legacy_vmsa_features

    def expected_capabilities(self, kind: GuestKind, sev: SevSetup | None = None) -> VmCapabilities:
        """What the era's table says."""
        return answer_capabilities(kind, (sev or SevSetup()).vm_type, self._era)

    def create_vm(
        self, kind: GuestKind, sev: SevSetup | None = None, *, cpuid: CpuidTable | None = None
    ) -> ModelVm:
        """A VM with one vCPU, which has all there is if it has a ``cpuid`` of its own.

        Raises UnsupportedError for kinds that are not modelled, HostError as KVM does.
        """
        if kind is GuestKind.TDX:
            raise UnsupportedError("the modelled host is AMD's and has no TDX guests", "use another kind")
        setup = sev or SevSetup()
        if setup.vm_type not in self.vm_types:
            raise _refused("KVM_CREATE_VM", f"{self.era} has no {setup.vm_type.kernel_name}")
        allowed = self.vmsa_features if kind in (GuestKind.SEV_ES, GuestKind.SNP) else 0
        if setup.vmsa_features & ~allowed:
            raise _refused(
                "KVM_SEV_INIT2", f"vmsa_features {setup.vmsa_features:#x}, allowed are {allowed:#x}"
            )
        return ModelVm(
            self._clock,
            kind,
            setup,
            self._era,
            lock_limit=self._lock_limit,
            raises_vc=self._raises_vc,
            platform=self._platform,
            cpuid=cpuid,
            cpu=self._cpu,
        )


def _refused(call: str, detail: str) -> HostError:
    return HostError(f"{call} (modelled)", EINVAL, detail)
