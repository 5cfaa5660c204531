"""The save areas that a vCPU starts with (QEMU target/i386/cpu.c reset state; Linux arch/x86/kvm/svm/sev.c sync).

What a launch measures is what KVM copies out of the reset state. How it got there shows: KVM_SEV_INIT2 copies the
x87 and SSE control words too, KVM_SEV_ES_INIT leaves them zero.
"""

from __future__ import annotations

from enum import StrEnum

from casemate.abi.sev.vmsa import SaveArea, VmcbSegment
from casemate.address import PAGE_SIZE

RESET_VECTOR = 0xFFFFFFF0
"""Where the first vCPU starts; the others start at the firmware's SEV-ES reset block."""

_MXCSR_RESET = 0x1F80
_FCW_RESET = 0x037F
_PAT_RESET = 0x0007_0406_0007_0406


class SevInit(StrEnum):
    """Which command set the guest up for SEV-ES."""

    LEGACY = "legacy"
    """KVM_SEV_ES_INIT, on a VM of the default type."""
    INIT2 = "init2"
    """KVM_SEV_INIT2 (Linux 6.10), on a VM of type KVM_X86_SEV_ES_VM."""


def vmsa_page(reset_address: int, signature: int, features: int, init: SevInit) -> bytes:
    """The page (4096 bytes) of a vCPU that starts at ``reset_address`` with CPUID ``signature``."""
    data = VmcbSegment(0, 0x93, 0xFFFF, 0)
    code = VmcbSegment(0xF000, 0x9B, 0xFFFF, reset_address & 0xFFFF0000)
    table = VmcbSegment(0, 0, 0xFFFF, 0)
    area = SaveArea(es=data, cs=code, ss=data, ds=data, fs=data, gs=data, gdtr=table, idtr=table)
    area.ldtr = VmcbSegment(0, 0x82, 0xFFFF, 0)
    area.tr = VmcbSegment(0, 0x8B, 0xFFFF, 0)
    area.efer = 0x1000  # SVME: KVM sets it for every guest
    area.cr4, area.cr0 = 0x40, 0x10
    area.dr7, area.dr6 = 0x400, 0xFFFF0FF0
    area.rflags, area.rip = 0x2, reset_address & 0xFFFF
    area.g_pat, area.xcr0 = _PAT_RESET, 1
    area.rdx, area.sev_features = signature, features
    if init is SevInit.INIT2:
        area.mxcsr, area.x87_fcw = _MXCSR_RESET, _FCW_RESET
    return area.to_bytes().ljust(PAGE_SIZE, b"\0")


def vmsa_pages(count: int, ap_reset: int, signature: int, features: int, init: SevInit) -> tuple[bytes, ...]:
    """The pages of ``count`` vCPUs in their order; all but the first are the same object."""
    first = vmsa_page(RESET_VECTOR, signature, features, init)
    if count == 1:
        return (first,)
    return (first, *(vmsa_page(ap_reset, signature, features, init),) * (count - 1))
