"""What this machine's KVM offers, and what stands in the way (Linux api.rst; x86/amd-memory-encryption.rst)."""

from __future__ import annotations

import grp
import os
import pwd
import resource
import stat
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from casemate.abi.kvm.capabilities import Capability
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.sev.platform import FLAG_ES, PlatformState
from casemate.errors import CasemateError
from casemate.host.kvm.modules import VENDOR_MODULES, module_parameters
from casemate.host.kvm.sev_device import SevDevice
from casemate.host.kvm.system import DEVICE, KvmSystem

SEV_DEVICE = "/dev/sev"
_MODULES = ("kvm", *VENDOR_MODULES, "ccp")
_SEV_TYPES = frozenset({VmType.SEV, VmType.SEV_ES, VmType.SNP})
_ENOUGH_LOCKED = 1 << 30
_ENCRYPTION_LEAF, _HAS_SEV, _C_BIT_MASK = 0x8000001F, 1 << 1, 0x3F
"""CPUID: EAX bit 1, and the position in EBX (AMD APM volume 3, E.4.17)."""


@dataclass(frozen=True, slots=True)
class DeviceAccess:
    """A device file: whether it is there, whose it is, and whether this process may read and write it."""

    path: str
    exists: bool
    mode: str = ""
    owner: str = ""
    group: str = ""
    usable: bool = False


@dataclass(frozen=True, slots=True)
class VmTypeOffer:
    """One type of VM: what a VM of it answers by the header's names, or why there is none."""

    name: str
    offered: bool
    capabilities: dict[str, int] = field(default_factory=dict)
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class SevPlatform:
    """What the secure processor says of itself."""

    api_major: int
    api_minor: int
    build: int
    state: str
    takes_sev_es: bool
    guests: int


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything found; ``refusal`` says why KVM cannot be used at all, ``remedies`` what to do about what."""

    kvm: DeviceAccess
    sev: DeviceAccess
    sev_platform: SevPlatform | None
    sev_refusal: str
    """Why no SEV guest can be launched here, or empty."""
    refusal: str
    system: dict[str, int]
    vm_types: tuple[VmTypeOffer, ...]
    vmsa_features: int
    c_bit: int | None
    """Which bit of an address says that a page is encrypted; None without SEV."""
    memlock: int | None
    """Bytes that this process may lock, None for any number."""
    modules: dict[str, dict[str, str] | None]
    """Parameters of the modules that matter; None where one is not loaded."""
    remedies: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        """Whether any VM can be made."""
        return any(offer.capabilities for offer in self.vm_types)


def survey_kvm(device: str = DEVICE, sev_device: str = SEV_DEVICE) -> Survey:
    """Look at everything; makes and closes one VM of each type that is offered."""
    refusal, features, c_bit = "", 0, None
    remedies: list[str] = []
    system: dict[str, int] = {}
    vm_types: tuple[VmTypeOffer, ...] = ()
    try:
        kvm = KvmSystem(device)
    except CasemateError as error:
        refusal = error.cause
        remedies.append(f"KVM: {error.remedy}")
    else:
        system = {item.kernel_name: kvm.extension(item) for item in Capability}
        vm_types = tuple(_offer(kvm, vm_type) for vm_type in VmType)
        features, c_bit = kvm.vmsa_features(), _c_bit(kvm)
        kvm.close()
    sev, memlock = _access(sev_device), _memlock()
    offers_sev = any(offer.capabilities for offer in vm_types if VmType[offer.name] in _SEV_TYPES)
    if offers_sev and not sev.usable:
        remedies.append(f"SEV: {_sev_remedy(sev)}")
    if offers_sev and memlock is not None and memlock < _ENOUGH_LOCKED:
        remedies.append("SEV pins guest memory: raise the limit of locked memory (ulimit -l), or run as root")
    platform, sev_refusal = _platform(sev_device)
    return Survey(
        kvm=_access(device),
        sev=sev,
        sev_platform=platform,
        sev_refusal=sev_refusal or ("" if offers_sev else "this KVM launches no SEV guests"),
        refusal=refusal,
        system=system,
        vm_types=vm_types,
        vmsa_features=features,
        c_bit=c_bit,
        memlock=memlock,
        modules={name: module_parameters(name) for name in _MODULES},
        remedies=tuple(remedies),
    )


def _offer(kvm: KvmSystem, vm_type: VmType) -> VmTypeOffer:
    if vm_type not in kvm.vm_types():
        return VmTypeOffer(vm_type.name, False, refusal="not in KVM_CAP_VM_TYPES")
    try:
        vm = kvm.create_vm(vm_type)
    except CasemateError as error:
        return VmTypeOffer(vm_type.name, True, refusal=error.cause)
    try:
        answers = {item.kernel_name: kvm.extension(item, vm) for item in Capability}
    finally:
        os.close(vm)
    return VmTypeOffer(vm_type.name, True, answers)


def _c_bit(kvm: KvmSystem) -> int | None:
    leaves = (leaf for leaf in kvm.supported_cpuid() if leaf.function == _ENCRYPTION_LEAF)
    return next((leaf.ebx & _C_BIT_MASK for leaf in leaves if leaf.eax & _HAS_SEV), None)


def _platform(path: str) -> tuple[SevPlatform | None, str]:
    try:
        with closing(SevDevice(path)) as device:
            status = device.status()
    except CasemateError as error:
        return None, error.cause
    state = (
        PlatformState(status.state).name.lower() if status.state in set(PlatformState) else str(status.state)
    )
    version = status.api_major, status.api_minor, status.build
    return SevPlatform(*version, state, bool(status.flags & FLAG_ES), status.guest_count), ""


def _access(path: str) -> DeviceAccess:
    try:
        status = Path(path).stat()
    except OSError:
        return DeviceAccess(path, exists=False)
    try:
        owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        owner, group = str(status.st_uid), str(status.st_gid)
    usable = os.access(path, os.R_OK | os.W_OK)
    return DeviceAccess(path, True, stat.filemode(status.st_mode), owner, group, usable)


def _sev_remedy(sev: DeviceAccess) -> str:
    if not sev.exists:
        return f"{sev.path} is not there: load the ccp module, and enable SEV in the firmware setup"
    return f"{sev.path} belongs to {sev.owner}:{sev.group}: join that group, or run as its owner"


def _memlock() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY or os.geteuid() == 0 else soft
