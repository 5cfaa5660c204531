"""A SEV launch by KVM_MEMORY_ENCRYPT_OP (Linux Documentation/virt/kvm/x86/amd-memory-encryption.rst)."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from casemate.abi.kvm.ioctls import Ioctl as KvmIoctl
from casemate.abi.kvm.sev import (
    SevCmd,
    SevGuestStatus,
    SevInit2,
    SevLaunchMeasure,
    SevLaunchSecret,
    SevLaunchStart,
    SevLaunchUpdateData,
)
from casemate.abi.kvm.structs import EncRegion
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.layout import Struct
from casemate.abi.sev.commands import GuestState, SevCommand
from casemate.abi.sev.status import is_answer, refused
from casemate.address import Hva
from casemate.errors import HostError
from casemate.host.kvm import ioctl
from casemate.host.kvm.sev_device import Ioctl, SevDevice
from casemate.host.secure_processor import LaunchMeasurement, LaunchSession, SevSetup, VcpuReset

_MEASUREMENT_SIZE = 48
_MAC_SIZE = 32
_MEMLOCK = (
    "SEV pins guest memory: raise the limit of locked memory (ulimit -l), give the guest less, or run as root"
)
_NOT_SET_UP = "this KVM, or this VM, does no SEV: see casemate caps"


@dataclass(frozen=True, slots=True)
class SevLauncher:
    """What makes a VM one for SEV guests; ``device`` is closed with it."""

    device: SevDevice
    setup: SevSetup
    sev_es: bool

    @property
    def seals_state(self) -> bool:
        """Whether registers are closed to the host."""
        return self.sev_es

    def set_up(
        self, vm: int, place_vcpus: Callable[[Sequence[VcpuReset]], None], _cpuid: object
    ) -> tuple[KvmSev, None]:
        """KVM_SEV_INIT, KVM_SEV_ES_INIT or KVM_SEV_INIT2 on the VM behind ``vm``, which has no vCPU yet."""
        return KvmSev(vm, self.device, self.setup, sev_es=self.sev_es, place_vcpus=place_vcpus), None

    def close(self) -> None:
        """Give the device back."""
        self.device.close()


class KvmSev:
    """Implements ``casemate.host.secure_processor.SecureProcessor`` for the VM behind ``vm``.

    Making it sets the VM up. ``place_vcpus`` puts the vCPUs where they start, just before they are measured.
    """

    def __init__(
        self,
        vm: int,
        device: SevDevice,
        setup: SevSetup,
        *,
        sev_es: bool,
        place_vcpus: Callable[[Sequence[VcpuReset]], None],
        call: Ioctl = ioctl.call,
    ) -> None:
        self._vm = vm
        self._device = device
        self._place_vcpus = place_vcpus
        self._call = call
        self._command = SevCommands(vm, device.fd, call)
        self._started = False
        if setup.vm_type is not VmType.DEFAULT:
            self._command(SevCommand.INIT2, SevInit2(vmsa_features=setup.vmsa_features))
        else:
            self._command(SevCommand.ES_INIT if sev_es else SevCommand.INIT)

    @cached_property
    def version(self) -> tuple[int, int, int]:
        """What the platform says."""
        status = self._device.status()
        return status.api_major, status.api_minor, status.build

    @property
    def pdh(self) -> bytes:
        """The platform's certificate."""
        return self._device.certificates().pdh

    @property
    def state(self) -> GuestState:
        """What GUEST_STATUS says, once there is a guest to ask for."""
        if not self._started:
            return GuestState.UNINIT
        status = SevGuestStatus()
        self._command(SevCommand.GUEST_STATUS, status)
        states = tuple(GuestState)
        return states[int(status.state)]

    def launch_start(self, policy: int, session: LaunchSession | None) -> None:
        """Create the guest's key."""
        start = SevLaunchStart(policy=policy)
        if session is not None:
            certificate, blob = (ctypes.create_string_buffer(data, len(data)) for data in session)
            start.dh_uaddr, start.dh_len = ctypes.addressof(certificate), len(certificate)
            start.session_uaddr, start.session_len = ctypes.addressof(blob), len(blob)
        self._command(SevCommand.LAUNCH_START, start)
        self._started = True

    def register_region(self, hva: Hva, size: int) -> None:
        """Pin for good."""
        try:
            self._call(self._vm, KvmIoctl.MEMORY_ENCRYPT_REG_REGION, EncRegion(hva, size))
        except HostError as error:
            raise _host_error(
                KvmIoctl.MEMORY_ENCRYPT_REG_REGION.kernel_name, error, f"{size:#x} bytes"
            ) from None

    def launch_update_data(self, hva: Hva, size: int) -> None:
        """Measure and encrypt in place."""
        self._command(SevCommand.LAUNCH_UPDATE_DATA, SevLaunchUpdateData(hva, size))

    def launch_update_vmsa(self, vcpus: Sequence[VcpuReset]) -> None:
        """Place, measure and encrypt the registers of every vCPU that the VM has."""
        self._place_vcpus(vcpus)
        self._command(SevCommand.LAUNCH_UPDATE_VMSA)

    def launch_measure(self) -> LaunchMeasurement:
        """Close the digest."""
        buffer = ctypes.create_string_buffer(_MEASUREMENT_SIZE)
        self._command(SevCommand.LAUNCH_MEASURE, SevLaunchMeasure(ctypes.addressof(buffer), len(buffer)))
        return LaunchMeasurement(buffer.raw[:_MAC_SIZE], buffer.raw[_MAC_SIZE:])

    def launch_secret(self, header: bytes, hva: Hva, data: bytes) -> None:
        """Hand a packet over."""
        packet, contents = (ctypes.create_string_buffer(text, len(text)) for text in (header, data))
        secret = SevLaunchSecret(
            hdr_uaddr=ctypes.addressof(packet),
            hdr_len=len(packet),
            guest_uaddr=hva,
            guest_len=len(contents),
            trans_uaddr=ctypes.addressof(contents),
            trans_len=len(contents),
        )
        self._command(SevCommand.LAUNCH_SECRET, secret)

    def launch_finish(self) -> None:
        """The guest may run."""
        self._command(SevCommand.LAUNCH_FINISH)


class SevCommands:
    """KVM_MEMORY_ENCRYPT_OP on one VM, of an ``snp`` guest or another."""

    def __init__(self, vm: int, sev_fd: int, call: Ioctl, *, snp: bool = False) -> None:
        self._vm = vm
        self._sev_fd = sev_fd
        self._call = call
        self._snp = snp

    def __call__(self, command: SevCommand, argument: Struct | None = None) -> None:
        """One command with its own struct. Raises HostError, or FirmwareStatusError where the firmware was asked."""
        request = SevCmd(id=command, sev_fd=self._sev_fd)
        if argument is not None:
            request.data = ctypes.addressof(argument)
        try:
            self._call(self._vm, KvmIoctl.MEMORY_ENCRYPT_OP, request)
        except HostError as error:
            if is_answer(request.error):
                raise refused(command.kernel_name, request.error, snp=self._snp) from None
            raise _host_error(command.kernel_name, error, "") from None


def _host_error(call: str, error: HostError, detail: str) -> HostError:
    if error.errno == errno.ENOMEM:
        return HostError(call, error.errno, detail or "memory cannot be pinned for writing", _MEMLOCK)
    remedy = _NOT_SET_UP if error.errno in (errno.ENOTTY, errno.EPERM) else ""
    return HostError(call, error.errno, detail, remedy)
