"""KVM's side of an SNP launch in software: attributes, owners of pages, firmware (Linux arch/x86/kvm/svm/sev.c)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from errno import EAGAIN, EEXIST, EFAULT, EINVAL

from casemate.abi.sev.commands import GuestState, SevCommand
from casemate.abi.sev.features import SevFeatures
from casemate.abi.sev.snp import VMSA_GPA, SnpPageType
from casemate.abi.sev.snp_pages import CpuidPage
from casemate.abi.sev.snp_policy import SnpPolicy
from casemate.abi.sev.status import SevStatus
from casemate.address import PAGE_SIZE, Gpa, GuestRange, Hva
from casemate.errors import FirmwareStatusError, HostError
from casemate.host import vma
from casemate.host.model.cpu.cpuid import CpuidTable
from casemate.host.model.sev.vmsa import save_area
from casemate.host.model.snp.cpuid_table import correct_table, guest_table
from casemate.host.model.snp.psp import SnpPsp
from casemate.host.model.snp.rmp import Rmp
from casemate.host.secure_processor import SevSetup, VcpuReset
from casemate.host.snp_processor import Certificates, SnpFinish, SnpUpdate

ASID = 1
"""Of the model's only guest."""

_FIRST_VMSA_PAGE = 1 << 52
"""Save areas lie in memory of the host that no guest address names; the table of owners needs a number for them."""


class ModelSnp:
    """Implements ``casemate.host.snp_processor.SnpProcessor`` for one VM.

    ``write`` gets the address and contents of each page that is launched, as the guest reads it; the host never sees
    it. ``pages_per_call`` is after how many pages the kernel is interrupted, None for never.
    """

    def __init__(
        self,
        setup: SevSetup,
        store: Callable[[int, bytes], object],
        cpuid: CpuidTable,
        *,
        pages_per_call: int | None = None,
    ) -> None:
        self._cpuid = cpuid
        self.rmp = Rmp()
        self.psp = SnpPsp(self.rmp, ASID)
        self.memory: list[GuestRange] = []
        """What has the attribute "private"."""
        self._store = store
        self._features = setup.vmsa_features | SevFeatures.SNP_ACTIVE
        self._pages_per_call = pages_per_call
        self.starts: list[int] = []
        """Addresses where the launched vCPUs start."""

    @property
    def state(self) -> GuestState:
        """How far the launch is."""
        return self.psp.state

    def cpuid_table(self) -> CpuidPage:
        """The modelled CPU's answers."""
        return guest_table(self._cpuid)

    def launch_start(self, policy: int, gosvw: bytes) -> None:
        """EINVAL for a policy that KVM itself does not take."""
        needed = SnpPolicy.SMT | SnpPolicy.RESERVED_ONE
        if policy & needed != needed or policy & SnpPolicy.SINGLE_SOCKET:
            detail = (
                f"policy {policy:#x}: KVM wants bits 16 (SMT) and 17 set and bit 20 (single socket) clear"
            )
            raise HostError(_name(SevCommand.SNP_LAUNCH_START), EINVAL, detail)
        self.psp.launch_start(policy, gosvw)

    def set_private(self, memory: GuestRange) -> None:
        """Remember the attribute; the pages get their owner when they are launched."""
        if not memory.is_page_aligned():
            raise HostError("KVM_SET_MEMORY_ATTRIBUTES (modelled)", EINVAL, f"{memory} is not whole pages")
        self.memory.append(memory)

    def launch_update(self, update: SnpUpdate) -> None:
        """Page by page, as KVM does."""
        command = _name(SevCommand.SNP_LAUNCH_UPDATE)
        if (update.gpa | update.size) % PAGE_SIZE or not update.size or update.page_type is SnpPageType.VMSA:
            raise HostError(
                command, EINVAL, f"{update.size:#x} bytes at {update.gpa:#x} of {update.page_type.name}"
            )
        if update.page_type is not SnpPageType.ZERO and not vma.is_readable(update.hva, update.size):
            raise HostError(
                command, EFAULT, f"{update.size:#x} bytes at host address {update.hva:#x} cannot be read"
            )
        done = 0
        while update.size:
            if done == self._pages_per_call:
                raise HostError(command, EAGAIN, f"{update.size:#x} bytes are left")
            self._update_page(update.gpa, update.hva, update.page_type)
            update.advance(PAGE_SIZE)
            done += 1

    def launch_finish(self, finish: SnpFinish, vcpus: Sequence[VcpuReset]) -> None:
        """Save areas first, then the firmware's last word."""
        self.starts = [vcpu.address for vcpu in vcpus]
        for index, vcpu in enumerate(vcpus):
            page = _FIRST_VMSA_PAGE + index
            self.rmp.assign(page, VMSA_GPA, ASID, immutable=True)
            self._launch(page, SnpPageType.VMSA, save_area(vcpu, self._features, saves_fpu=True))
        self.psp.launch_finish(finish)

    def guest_report(self, report_data: bytes) -> bytes:
        """The model asks itself."""
        return self.psp.report(report_data)

    def certificates(self) -> Certificates:
        """The model's own."""
        return self.psp.endorsement.chain

    def _update_page(self, gpa: Gpa, hva: Hva, page_type: SnpPageType) -> None:
        command, page = _name(SevCommand.SNP_LAUNCH_UPDATE), gpa // PAGE_SIZE
        if not any(memory.contains(gpa, PAGE_SIZE) for memory in self.memory):
            raise HostError(command, EINVAL, f"page {gpa:#x} is not private (KVM_MEMORY_ATTRIBUTE_PRIVATE)")
        if self.rmp[page].assigned:
            raise HostError(command, EEXIST, f"page {gpa:#x} is the guest's already")
        self.rmp.assign(page, gpa, ASID, immutable=True)
        contents = bytes(PAGE_SIZE) if page_type is SnpPageType.ZERO else ctypes.string_at(hva, PAGE_SIZE)
        try:
            self._store(gpa, self._launch(page, page_type, contents))
        except FirmwareStatusError as error:
            if page_type is SnpPageType.CPUID and error.status == SevStatus.INVALID_PARAM:
                ctypes.memmove(hva, correct_table(CpuidPage.from_bytes(contents)).to_bytes(), CpuidPage.SIZE)
            raise

    def _launch(self, page: int, page_type: SnpPageType, contents: bytes) -> bytes:
        try:
            return self.psp.launch_update(page, page_type, contents)
        except FirmwareStatusError:
            self.rmp.release(page)
            raise


def _name(command: SevCommand) -> str:
    return f"{command.kernel_name} (modelled)"
