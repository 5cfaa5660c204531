"""/dev/kvm: whether it can be used, and VMs from it (Linux Documentation/virt/kvm/api.rst, system ioctls)."""

from __future__ import annotations

import errno
import os
from ctypes import addressof, c_uint64

from casemate.abi.kvm.capabilities import Capability
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import (
    X86_GRP_SEV,
    X86_SEV_VMSA_FEATURES,
    CpuidEntry2,
    DeviceAttr,
)
from casemate.abi.kvm.vm_types import VmType
from casemate.errors import HostError, UnsupportedError
from casemate.host.kvm.ioctl import call

DEVICE = "/dev/kvm"
API_VERSION = 12
_NEEDED = (
    Capability.USER_MEMORY,
    Capability.SET_TSS_ADDR,
    Capability.IRQCHIP,
    Capability.IRQ_ROUTING,
    Capability.PIT2,
    Capability.COALESCED_MMIO,
    Capability.IMMEDIATE_EXIT,
)
_MAX_CPUID_ENTRIES = 256
_REMEDIES = {
    errno.ENOENT: "load the kvm module (kvm_amd or kvm_intel), or use --host model",
    errno.EACCES: "join the group that owns it (kvm), or use --host model",
    errno.EPERM: "join the group that owns it (kvm), or use --host model",
    errno.ENODEV: "enable virtualization in the firmware setup, or use --host model",
}


class KvmSystem:
    """An open /dev/kvm. Raises UnsupportedError, with a remedy, if there is none that can be used."""

    def __init__(self, device: str = DEVICE) -> None:
        try:
            self._fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "use --host model")
            raise UnsupportedError(f"{device} cannot be opened: {error.strerror}", remedy) from error
        try:
            self._validate(device)
        except BaseException:
            self.close()
            raise

    def _validate(self, device: str) -> None:
        try:
            version = call(self._fd, Ioctl.GET_API_VERSION)
        except HostError as error:
            raise UnsupportedError(f"{device} is no KVM: {error.cause}", "use --host model") from error
        if version != API_VERSION:
            raise UnsupportedError(
                f"{device} speaks API version {version}, not {API_VERSION}", "use --host model"
            )
        missing = [capability.kernel_name for capability in _NEEDED if not self.extension(capability)]
        if missing:
            raise UnsupportedError(f"this KVM has no {', '.join(missing)}", "use --host model")

    def extension(self, capability: Capability, vm: int | None = None) -> int:
        """What the system, or the VM behind a descriptor, says of a capability; 0 is no."""
        return call(self._fd if vm is None else vm, Ioctl.CHECK_EXTENSION, capability)

    def vmsa_features(self) -> int:
        """The ``sev_features`` bits that KVM_SEV_INIT2 takes; 0 on hosts without SEV-ES."""
        mask = c_uint64()
        attribute = DeviceAttr(group=X86_GRP_SEV, attr=X86_SEV_VMSA_FEATURES, addr=addressof(mask))
        try:
            call(self._fd, Ioctl.GET_DEVICE_ATTR, attribute)
        except HostError:
            return 0
        return mask.value

    def vm_types(self) -> frozenset[VmType]:
        """The types that KVM_CREATE_VM takes; a kernel without KVM_CAP_VM_TYPES takes the default one."""
        mask = self.extension(Capability.VM_TYPES) or 1 << VmType.DEFAULT
        return frozenset(vm_type for vm_type in VmType if mask >> vm_type & 1)

    def create_vm(self, vm_type: VmType) -> int:
        """A VM's file descriptor."""
        return call(self._fd, Ioctl.CREATE_VM, vm_type, f"VM type {vm_type.kernel_name}")

    def vcpu_mmap_size(self) -> int:
        """Bytes of the area that a vCPU shares with its user."""
        return call(self._fd, Ioctl.GET_VCPU_MMAP_SIZE)

    def supported_cpuid(self) -> list[CpuidEntry2]:
        """Every CPUID leaf that this KVM can give a guest."""
        buffer = bytearray(8 + _MAX_CPUID_ENTRIES * CpuidEntry2.SIZE)
        buffer[0:4] = _MAX_CPUID_ENTRIES.to_bytes(4, "little")
        call(self._fd, Ioctl.GET_SUPPORTED_CPUID, buffer)
        count = int.from_bytes(buffer[0:4], "little")
        return [CpuidEntry2.from_bytes(bytes(buffer), 8 + i * CpuidEntry2.SIZE) for i in range(count)]

    def close(self) -> None:
        """Give the descriptor back; VMs made from it live on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
