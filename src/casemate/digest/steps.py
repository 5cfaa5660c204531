"""The steps of SEV and SNP launches: memory and registers that are measured (AMD 55766, chapter 6; AMD 56860, 8.17)."""

from __future__ import annotations

from typing import NamedTuple

from casemate.abi.sev.snp import SnpPageType
from casemate.address import Gpa


class UpdateData(NamedTuple):
    """LAUNCH_UPDATE_DATA: encrypt ``data`` at ``gpa`` and extend the digest by it; ``what`` names it for people."""

    what: str
    gpa: Gpa
    data: bytes

    def __repr__(self) -> str:
        return f"UpdateData({self.what!r}, {self.gpa:#x}, {len(self.data)} bytes)"

    @property
    def size(self) -> int:
        """Bytes of guest memory."""
        return len(self.data)


class UpdateVmsa(NamedTuple):
    """The registers of one vCPU; ``data`` is its save area, a whole page.

    LAUNCH_UPDATE_VMSA encrypts it; for an SNP guest KVM makes it a page of type VMSA in SNP_LAUNCH_FINISH.
    """

    vcpu: int
    data: bytes

    def __repr__(self) -> str:
        return f"UpdateVmsa({self.vcpu}, {len(self.data)} bytes)"

    @property
    def what(self) -> str:
        """The step's name for people."""
        return f"VMSA of vCPU {self.vcpu}"

    @property
    def gpa(self) -> None:
        """Registers have no address that a guest knows."""
        return None

    @property
    def size(self) -> int:
        """Bytes of guest memory."""
        return len(self.data)


class SnpPages(NamedTuple):
    """SNP_LAUNCH_UPDATE: give the guest ``size`` bytes of one type at ``gpa``.

    ``data`` is what they hold, empty where only type and address are measured.
    """

    what: str
    gpa: Gpa
    size: int
    page_type: SnpPageType
    data: bytes = b""

    def __repr__(self) -> str:
        return f"SnpPages({self.what!r}, {self.gpa:#x}, {self.size:#x} bytes, {self.page_type.name})"
