"""The descriptor of /dev/kvm itself (Linux api.rst, "system ioctls")."""

from __future__ import annotations

import gc
from errno import E2BIG, EBADF, EINVAL, ENXIO

from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import X86_GRP_SEV, X86_SEV_VMSA_FEATURES, CpuidEntry2, DeviceAttr, MsrEntry
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.x86 import msr
from casemate.userkvm import cpuid
from casemate.userkvm.guest_memfd import GuestMemfd
from casemate.userkvm.kernel import Kernel
from casemate.userkvm.library import RUN_BYTES
from casemate.userkvm.table import (
    Descriptor,
    Refused,
    answer_msrs,
    answers,
    copy_in,
    copy_out,
    copy_out_cpuid,
)
from casemate.userkvm.vcpu import Vcpu
from casemate.userkvm.vm import Vm

_API_VERSION = 12
_DE_CFG = 0xC0011029
_MSRS = (
    msr.TSC,
    msr.SYSENTER_CS,
    msr.SYSENTER_ESP,
    msr.SYSENTER_EIP,
    msr.PAT,
    *range(msr.STAR, msr.FMASK + 1),
    msr.FS_BASE + 2,
    msr.MISC_ENABLE,
    msr.FEATURE_CONTROL,
    msr.TSC_DEADLINE,
)
_FEATURE_MSRS = {_DE_CFG: 2}
"""LFENCE serializes."""
_MCE_BANKS = 1 << 24 | 1 << 8


class System(Descriptor):
    """``/dev/kvm``."""

    unknown_errno = EINVAL

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.vms: dict[int, Vm] = {}
        """By number."""

    @answers(Ioctl.GET_API_VERSION)
    def get_api_version(self, argument: int) -> int:
        """12, for ever."""
        if argument:
            raise Refused(EINVAL, "it takes no argument")
        return _API_VERSION

    @answers(Ioctl.CHECK_EXTENSION)
    def check_extension(self, number: int) -> int:
        """The system's answer, which for read-only memory is not the VM's."""
        return self._kernel.capabilities.answer(number)

    @answers(Ioctl.GET_VCPU_MMAP_SIZE)
    def get_mmap_size(self, argument: int) -> int:
        """``kvm_run``, a page for ports, a page that no write is coalesced in."""
        if argument:
            raise Refused(EINVAL, "it takes no argument")
        return RUN_BYTES

    @answers(Ioctl.CREATE_VM)
    def create_vm(self, number: int) -> int:
        """A VM of one of the era's types."""
        if number not in {int(each) for each in self._kernel.vm_types}:
            raise Refused(EINVAL, f"{self._kernel.era.name} has no VM type {number}")
        vm = Vm(self._kernel, VmType(number))
        self.vms[vm.number] = vm
        return vm.fd

    def _memfd(self, number: int) -> tuple[Vm, GuestMemfd] | None:
        return next(((vm, vm.memfds[number]) for vm in list(self.vms.values()) if number in vm.memfds), None)

    def close_memfd(self, number: int) -> Vm | None:
        """The monitor closed a file of private memory; its VM."""
        found = self._memfd(number)
        if found is None:
            return None
        found[1].is_closed = True
        return found[0]

    def allocate(self, number: int, mode: int, offset: int, size: int) -> None:
        """fallocate(2) on private memory. Raises Refused."""
        found = self._memfd(number)
        if found is None:
            raise Refused(EBADF, "it is closed")
        found[1].allocate(mode, offset, size)

    def vcpu(self, address: int) -> Vcpu | None:
        """The one that the library knows by this address."""
        vcpus = (vcpu for vm in list(self.vms.values()) for vcpu in list(vm.vcpus.values()))
        return next((vcpu for vcpu in vcpus if vcpu.address == address), None)

    def release(self, vm: Vm) -> None:
        """Forget a VM that nobody has a descriptor of."""
        del self.vms[vm.number]
        vm.close()
        # A CPU and its callbacks know each other, and hold mappings.
        gc.collect()

    @answers(Ioctl.GET_MSR_INDEX_LIST)
    def get_msr_list(self, address: int) -> None:
        """What a vCPU saves."""
        _put_list(address, _MSRS)

    @answers(Ioctl.GET_MSR_FEATURE_INDEX_LIST)
    def get_feature_msr_list(self, address: int) -> None:
        """What describes the host."""
        _put_list(address, tuple(_FEATURE_MSRS))

    @answers(Ioctl.GET_MSRS)
    def get_msrs(self, address: int) -> int:
        """Of the features."""
        return answer_msrs(address, _read_feature, is_read=True)

    @answers(Ioctl.GET_SUPPORTED_CPUID)
    def get_cpuid(self, address: int) -> None:
        """E2BIG if there is no room."""
        has_snp = any(vm.vm_type is VmType.SNP for vm in self.vms.values())
        copy_out_cpuid(address, cpuid.supported(has_snp=has_snp))

    @answers(Ioctl.GET_EMULATED_CPUID)
    def get_emulated_cpuid(self, address: int) -> None:
        """None."""
        if not int.from_bytes(copy_in(address, 4), "little"):
            raise Refused(E2BIG, "no room")
        copy_out(address, bytes(4))
        copy_out(address + 8, bytes(CpuidEntry2.SIZE))

    @answers(Ioctl.X86_GET_MCE_CAP_SUPPORTED)
    def get_mce(self, address: int) -> None:
        """Banks of machine checks that never come."""
        copy_out(address, _MCE_BANKS.to_bytes(8, "little"))

    @answers(Ioctl.HAS_DEVICE_ATTR, DeviceAttr)
    def has_attribute(self, value: DeviceAttr) -> None:
        """Whether it has one."""
        self._attribute(value)

    @answers(Ioctl.GET_DEVICE_ATTR, DeviceAttr)
    def get_attribute(self, value: DeviceAttr) -> None:
        """Features of save areas, and of extended state."""
        copy_out(value.addr, self._attribute(value).to_bytes(8, "little"))

    def _attribute(self, value: DeviceAttr) -> int:
        if (value.group, value.attr) == (0, 0):
            return cpuid.SUPPORTED_XCR0
        if (value.group, value.attr) == (
            X86_GRP_SEV,
            X86_SEV_VMSA_FEATURES,
        ) and VmType.SEV_ES in self._kernel.vm_types:
            return self._kernel.era.init2_vmsa_features
        raise Refused(ENXIO, f"no attribute {value.attr} of group {value.group}")


def _read_feature(entry: MsrEntry) -> bool:
    if entry.index not in _FEATURE_MSRS:
        return False
    entry.data = _FEATURE_MSRS[entry.index]
    return True


def _put_list(address: int, numbers: tuple[int, ...]) -> None:
    room = int.from_bytes(copy_in(address, 4), "little")
    copy_out(address, len(numbers).to_bytes(4, "little"))
    if room < len(numbers):
        raise Refused(E2BIG, f"{len(numbers)} registers")
    copy_out(address + 4, b"".join(number.to_bytes(4, "little") for number in numbers))
