"""/dev/sev: what the secure processor says of itself (Linux include/uapi/linux/psp-sev.h, SEV_ISSUE_CMD)."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Protocol

from casemate.abi.layout import Struct
from casemate.abi.sev.certificates import SevCertificate
from casemate.abi.sev.platform import (
    GetId2,
    IssueCmd,
    PdhCertExport,
    PlatformCommand,
    PlatformStatus,
    SevIoctl,
)
from casemate.abi.sev.status import SevStatus, is_answer, refused
from casemate.errors import CasemateError, FirmwareStatusError, HostError, UnsupportedError
from casemate.host.kvm import ioctl
from casemate.host.secure_processor import PlatformCertificates

DEVICE = "/dev/sev"

_CHAIN_SIZE = 3 * SevCertificate.SIZE
_CHIP_ID_SIZE = 64
_REMEDIES = {
    errno.ENOENT: "load the ccp module, and enable SEV in the firmware setup; or use --host model",
    errno.EACCES: "join the group that owns it, or run as root; or use --host model",
    errno.EPERM: "join the group that owns it, or run as root; or use --host model",
}


class Ioctl(Protocol):
    """How an ioctl is made: ``casemate.host.kvm.ioctl.call``, or what stands in for it."""

    def __call__(self, fd: int, request: ioctl.Request, argument: Struct, /) -> int:
        """Raises HostError where the kernel refuses."""


class SevDevice:
    """The secure processor. Raises UnsupportedError, with a remedy, if the device cannot be opened."""

    def __init__(self, device: str = DEVICE, call: Ioctl = ioctl.call) -> None:
        self._call = call
        try:
            self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "use --host model")
            raise UnsupportedError(f"{device} cannot be opened: {error.strerror}", remedy) from None

    def status(self) -> PlatformStatus:
        """PLATFORM_STATUS."""
        status = PlatformStatus()
        self._issue(PlatformCommand.PLATFORM_STATUS, status)
        return status

    def certificates(self) -> PlatformCertificates:
        """PDH_CERT_EXPORT: the PDH and what signs it, without AMD's own two certificates."""
        pdh = ctypes.create_string_buffer(SevCertificate.SIZE)
        chain = ctypes.create_string_buffer(_CHAIN_SIZE)
        export = PdhCertExport(ctypes.addressof(pdh), len(pdh), ctypes.addressof(chain), len(chain))
        self._issue(PlatformCommand.PDH_CERT_EXPORT, export)
        return PlatformCertificates(pdh.raw, chain.raw)

    def chip_id(self) -> bytes:
        """GET_ID2: what AMD's key server knows the chip by, usually 64 bytes."""
        buffer = ctypes.create_string_buffer(_CHIP_ID_SIZE)
        request = GetId2(ctypes.addressof(buffer), len(buffer))
        try:
            self._issue(PlatformCommand.GET_ID2, request)
        except FirmwareStatusError as error:
            if error.status != SevStatus.INVALID_LEN or request.length <= len(buffer):
                raise
            buffer = ctypes.create_string_buffer(request.length)
            request.address = ctypes.addressof(buffer)
            self._issue(PlatformCommand.GET_ID2, request)
        return buffer.raw[: request.length]

    def close(self) -> None:
        """Give the descriptor back; harmless when repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _issue(self, command: PlatformCommand, argument: Struct) -> None:
        request = IssueCmd(cmd=command, data=ctypes.addressof(argument))
        try:
            self._call(self.fd, SevIoctl.ISSUE_CMD, request)
        except HostError as error:
            raise _failure(command, request.error, error) from None


def _failure(command: PlatformCommand, status: int, error: HostError) -> CasemateError:
    if is_answer(status):
        return refused(command.kernel_name, status)
    remedy = "run as root" if error.errno in (errno.EPERM, errno.EACCES) else ""
    return HostError(command.kernel_name, error.errno, "on /dev/sev", remedy)
