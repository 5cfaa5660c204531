"""The descriptor of /dev/sev: the modelled secure processor itself (Linux include/uapi/linux/psp-sev.h)."""

from __future__ import annotations

from errno import EINVAL, EIO, ENOTTY

from casemate.abi.sev.platform import (
    FLAG_ES,
    GetId2,
    IssueCmd,
    PdhCertExport,
    PlatformCommand,
    PlatformState,
    PlatformStatus,
    SevIoctl,
)
from casemate.abi.sev.status import SevStatus
from casemate.host.model.sev.platform import API
from casemate.host.model.sev.psp import BUILD
from casemate.userkvm.kernel import Kernel
from casemate.userkvm.system import System
from casemate.userkvm.table import Descriptor, Refused, answers, copy_in, copy_out

CHIP_ID = b"modelled by casemate: no chip has this number".ljust(64, b"\0")
"""Of the computer's only socket."""
_ERROR_AT = 12
"""Of ``IssueCmd.error``."""


class SevDevice(Descriptor):
    """``/dev/sev``."""

    unknown_errno = ENOTTY

    def __init__(self, kernel: Kernel, system: System) -> None:
        self._kernel = kernel
        self._system = system

    @answers(SevIoctl.ISSUE_CMD)  # type: ignore[arg-type]
    def issue(self, address: int) -> None:
        """A command to the platform; those that change it are refused."""
        command = IssueCmd.from_bytes(copy_in(address, IssueCmd.SIZE))
        copy_out(address + _ERROR_AT, bytes(4))
        if command.cmd == PlatformCommand.PLATFORM_STATUS:
            copy_out(command.data, self._status().to_bytes())
        elif command.cmd == PlatformCommand.PDH_CERT_EXPORT:
            self._export(address, command.data)
        elif command.cmd == PlatformCommand.GET_ID2:
            self._identify(address, command.data)
        else:
            raise Refused(EINVAL, f"platform command {command.cmd} is not modelled")

    def _status(self) -> PlatformStatus:
        guests = sum(vm.kind.is_confidential for vm in self._system.vms.values())
        state = PlatformState.WORKING if guests else PlatformState.INIT
        return PlatformStatus(*API, state, FLAG_ES, BUILD, guests)

    def _identify(self, address: int, data: int) -> None:
        wanted = GetId2.from_bytes(copy_in(data, GetId2.SIZE))
        fits = wanted.length >= len(CHIP_ID)
        if fits:
            copy_out(wanted.address, CHIP_ID)
        wanted.length = len(CHIP_ID)
        copy_out(data, wanted.to_bytes())
        if not fits:
            self._refuse_length(address)

    def _refuse_length(self, address: int) -> None:
        copy_out(address + _ERROR_AT, int(SevStatus.INVALID_LEN).to_bytes(4, "little"))
        raise Refused(EIO, "the buffers are too small")

    def _export(self, address: int, data: int) -> None:
        wanted = PdhCertExport.from_bytes(copy_in(data, PdhCertExport.SIZE))
        certificates = self._kernel.platform.certificates
        fits = wanted.pdh_cert_len >= len(certificates.pdh) and wanted.cert_chain_len >= len(
            certificates.chain
        )
        if fits:
            copy_out(wanted.pdh_cert_address, certificates.pdh)
            copy_out(wanted.cert_chain_address, certificates.chain)
        wanted.pdh_cert_len, wanted.cert_chain_len = len(certificates.pdh), len(certificates.chain)
        copy_out(data, wanted.to_bytes())
        if not fits:
            self._refuse_length(address)
