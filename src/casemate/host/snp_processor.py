"""The secure processor as an SNP launch sees it: KVM's commands of one VM (Linux x86/amd-memory-encryption.rst)."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from casemate.abi.sev.commands import GuestState
from casemate.abi.sev.snp import SnpPageType
from casemate.abi.sev.snp_pages import CpuidPage
from casemate.address import Gpa, GuestRange, Hva
from casemate.host.secure_processor import VcpuReset

GOSVW_SIZE, HOST_DATA_SIZE = 16, 32
"""Bytes of the guest-visible workarounds and of the host's data."""


class SnpUpdate:
    """SNP_LAUNCH_UPDATE of ``size`` bytes at ``gpa``, copied from ``hva``; advanced by the pages that are done."""

    def __init__(self, gpa: Gpa, hva: Hva, size: int, page_type: SnpPageType) -> None:
        self.gpa = gpa
        self.hva = hva
        self.size = size
        self.page_type = page_type

    def advance(self, size: int) -> None:
        """So many bytes are done."""
        self.gpa, self.hva, self.size = Gpa(self.gpa + size), Hva(self.hva + size), self.size - size


class SnpFinish(NamedTuple):
    """Inputs of SNP_LAUNCH_FINISH; empty ID block and authentication: the host starts any guest."""

    id_block: bytes = b""
    id_auth: bytes = b""
    has_author_key: bool = False
    vcek_disabled: bool = False
    host_data: bytes = bytes(HOST_DATA_SIZE)


class Certificates(NamedTuple):
    """Who vouches for the signer of reports, in PEM form, the root first."""

    ark: bytes
    ask: bytes
    vcek: bytes


class SnpProcessor(Protocol):
    """The launch of one SNP guest.

    Raises FirmwareStatusError where the firmware refuses, HostError where the kernel does before it asks.
    """

    @property
    def state(self) -> GuestState:
        """How far the launch is."""

    def cpuid_table(self) -> CpuidPage:
        """What the guest's vCPU would say to CPUID (KVM_GET_CPUID2), as far as the firmware may take it."""

    def launch_start(self, policy: int, gosvw: bytes) -> None:
        """Begin."""

    def set_private(self, memory: GuestRange) -> None:
        """Guest memory that the host cannot read is at these addresses (KVM_SET_MEMORY_ATTRIBUTES)."""

    def launch_update(self, update: SnpUpdate) -> None:
        """Copy, measure and encrypt pages.

        EAGAIN: some are done, ``update`` says what is left. A CPUID table that is refused has been corrected at its
        ``hva``.
        """

    def launch_finish(self, finish: SnpFinish, vcpus: Sequence[VcpuReset]) -> None:
        """Measure and encrypt the registers of all vCPUs in their order; the guest may run."""

    def guest_report(self, report_data: bytes) -> bytes | None:
        """A report as the guest would get it, for 64 bytes of its own; None where only a running guest can ask."""

    def certificates(self) -> Certificates:
        """Those of who signs reports. Raises UnsupportedError where the host has none."""
