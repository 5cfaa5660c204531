"""How the save areas of other monitors differ from those of QEMU (virtee/sev-snp-measure 0.0.13, its ``--vmm-type``).

That tool is the only public source for them; the clouds publish none, and neither offers SEV-ES guests by name.
"""

from __future__ import annotations

from enum import StrEnum

from casemate.abi.sev.vmsa import SaveArea
from casemate.address import PAGE_SIZE
from casemate.digest.sev_init import SevInit
from casemate.digest.vmsa_pages import RESET_VECTOR, vmsa_page

UNSET_SIGNATURE = 0x600
"""RDX at reset of a vCPU without CPUID (Linux arch/x86/kvm/x86.c, kvm_vcpu_reset)."""

_GCE_PAT = 0x0007_0106


class Launcher(StrEnum):
    """What sets a SEV-ES guest's registers up."""

    INIT2 = "init2"
    LEGACY = "legacy"
    EC2 = "ec2"
    GCE = "gce"


def launcher_page(launcher: Launcher, reset_address: int, signature: int, features: int) -> bytes:
    """The page (4096 bytes) of a vCPU; EC2 and GCE leave the signature and the FPU state out."""
    if launcher in (Launcher.INIT2, Launcher.LEGACY):
        return vmsa_page(reset_address, signature, features, SevInit(launcher.value))
    page = vmsa_page(reset_address, UNSET_SIGNATURE, features, SevInit.LEGACY)
    area = SaveArea.from_buffer_copy(page)
    if launcher is Launcher.GCE:
        area.g_pat = _GCE_PAT
    else:
        area.ss.attributes, area.tr.attributes = 0x92, 0x83
        if reset_address == RESET_VECTOR:
            area.cs.attributes = 0x9A
    return area.to_bytes().ljust(PAGE_SIZE, b"\0")
