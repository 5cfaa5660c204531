"""KVM's and the device's side of SEV ioctls, which keeps the bytes it gets and asks a model (struct kvm_sev_cmd)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from errno import EIO

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
from casemate.abi.layout import Struct
from casemate.abi.sev.commands import GuestState, SevCommand
from casemate.abi.sev.platform import (
    GetId2,
    IssueCmd,
    PdhCertExport,
    PlatformCommand,
    PlatformStatus,
    SevIoctl,
)
from casemate.address import Hva
from casemate.errors import FirmwareStatusError, HostError
from casemate.host.kvm.ioctl import Request
from casemate.host.kvm.sev_device import SevDevice
from casemate.host.model.sev.platform import ModelPlatform
from casemate.host.model.sev.sev import ModelSev
from casemate.host.secure_processor import LaunchSession, VcpuReset

HANDLE = 7
CHIP_ID = bytes(range(64))

_ARGUMENTS: dict[SevCommand, type[Struct]] = {
    SevCommand.INIT2: SevInit2,
    SevCommand.LAUNCH_START: SevLaunchStart,
    SevCommand.LAUNCH_UPDATE_DATA: SevLaunchUpdateData,
    SevCommand.LAUNCH_MEASURE: SevLaunchMeasure,
    SevCommand.LAUNCH_SECRET: SevLaunchSecret,
    SevCommand.GUEST_STATUS: SevGuestStatus,
}


@dataclass(frozen=True, slots=True)
class SevCall:
    """One ioctl as it came in: whose, its own struct, and the struct that this one points to."""

    name: str
    request: bytes
    argument: bytes


class SevIoctls:
    """Stands in for ``casemate.host.kvm.ioctl.call``. ``sev`` answers; ``before`` hears each call's name first."""

    def __init__(
        self, sev: ModelSev, platform: ModelPlatform, before: Callable[[str], None] | None = None
    ) -> None:
        self.calls: list[SevCall] = []
        self.vcpus: tuple[VcpuReset, ...] = ()
        self._sev = sev
        self._platform = platform
        self._before = before or (lambda name: None)

    def __call__(self, fd: int, request: Request, argument: Struct, /) -> int:
        """Take one ioctl apart, keep it, ask the model, and answer as the kernel does."""
        try:
            match request:
                case KvmIoctl.MEMORY_ENCRYPT_OP:
                    self._vm_command(SevCmd.from_buffer(argument))
                case KvmIoctl.MEMORY_ENCRYPT_REG_REGION:
                    region = EncRegion.from_buffer(argument)
                    self._keep(request.kernel_name, region.to_bytes())
                    self._sev.register_region(Hva(region.addr), region.size)
                case SevIoctl.ISSUE_CMD:
                    self._device_command(IssueCmd.from_buffer(argument))
        except FirmwareStatusError as error:
            argument.error = error.status
            raise HostError(request.kernel_name, EIO) from None
        return 0

    def _vm_command(self, request: SevCmd) -> None:
        command = SevCommand(request.id)
        kind = _ARGUMENTS.get(command)
        argument = kind.from_address(request.data) if kind else None
        self._keep(command.kernel_name, request.to_bytes(), argument)
        match argument:
            case SevLaunchStart():
                self._sev.launch_start(argument.policy, _session(argument))
                argument.handle = HANDLE
            case SevLaunchUpdateData():
                self._sev.launch_update_data(Hva(argument.uaddr), argument.len)
            case SevLaunchMeasure():
                _answer(argument.uaddr, argument.len, b"".join(self._sev.launch_measure()))
            case SevLaunchSecret():
                header = ctypes.string_at(argument.hdr_uaddr, argument.hdr_len)
                data = ctypes.string_at(argument.trans_uaddr, argument.trans_len)
                self._sev.launch_secret(header, Hva(argument.guest_uaddr), data)
            case SevGuestStatus():
                argument.handle, argument.state = HANDLE, tuple(GuestState).index(self._sev.state)
        if command is SevCommand.LAUNCH_UPDATE_VMSA:
            self._sev.launch_update_vmsa(self.vcpus)
        elif command is SevCommand.LAUNCH_FINISH:
            self._sev.launch_finish()

    def _device_command(self, request: IssueCmd) -> None:
        command = PlatformCommand(request.cmd)
        kinds = {
            PlatformCommand.PLATFORM_STATUS: PlatformStatus,
            PlatformCommand.PDH_CERT_EXPORT: PdhCertExport,
            PlatformCommand.GET_ID2: GetId2,
        }
        argument = kinds[command].from_address(request.data)
        self._keep(command.kernel_name, request.to_bytes(), argument)
        match argument:
            case PlatformStatus():
                argument.api_major, argument.api_minor, argument.build = self._sev.version
                argument.flags = 0x101
            case PdhCertExport():
                certificates = self._platform.certificates
                _answer(argument.pdh_cert_address, argument.pdh_cert_len, certificates.pdh)
                _answer(argument.cert_chain_address, argument.cert_chain_len, certificates.chain)
            case GetId2():
                _answer(argument.address, argument.length, CHIP_ID)

    def _keep(self, name: str, request: bytes, argument: Struct | None = None) -> None:
        self._before(name)
        self.calls.append(SevCall(name, request, argument.to_bytes() if argument is not None else b""))


def open_device(call: SevIoctls) -> SevDevice:
    """A device whose ioctls go to ``call``."""
    return SevDevice(os.devnull, call)


def _session(start: SevLaunchStart) -> LaunchSession | None:
    if not start.session_uaddr:
        return None
    certificate = ctypes.string_at(start.dh_uaddr, start.dh_len)
    return LaunchSession(certificate, ctypes.string_at(start.session_uaddr, start.session_len))


def _answer(address: int, size: int, data: bytes) -> None:
    ctypes.memmove(address, data, min(size, len(data)))
