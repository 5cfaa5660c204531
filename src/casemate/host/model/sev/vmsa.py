"""The save area that KVM fills from a vCPU in reset state (Intel SDM volume 3, 9.1.1; Linux svm/sev.c)."""

from __future__ import annotations

from casemate.abi.sev.vmsa import SaveArea
from casemate.address import PAGE_SIZE
from casemate.host.secure_processor import VcpuReset

_DATA_ATTRIBUTES = 0x93  # present, writable data, accessed
_CODE_ATTRIBUTES = 0x9B  # present, readable code, accessed
_LDT_ATTRIBUTES = 0x82
_BUSY_TSS_ATTRIBUTES = 0x8B
_LIMIT = 0xFFFF


def save_area(vcpu: VcpuReset, features: int, *, saves_fpu: bool) -> bytes:
    """The page (4096 bytes) of one vCPU with these ``sev_features``."""
    area = SaveArea()
    for name in ("es", "ss", "ds", "fs", "gs"):
        _set_segment(area, name, _DATA_ATTRIBUTES)
    _set_segment(area, "cs", _CODE_ATTRIBUTES)
    area.cs.selector, area.cs.base = 0xF000, vcpu.address & 0xFFFF0000
    _set_segment(area, "gdtr", 0)
    _set_segment(area, "idtr", 0)
    _set_segment(area, "ldtr", _LDT_ATTRIBUTES)
    _set_segment(area, "tr", _BUSY_TSS_ATTRIBUTES)
    area.rip, area.rdx, area.rflags = vcpu.address & 0xFFFF, vcpu.signature, 1 << 1
    area.cr0, area.cr4 = 1 << 4, 1 << 6  # ET; MCE, which user space sets
    area.efer = 1 << 12  # SVME
    area.dr6, area.dr7, area.xcr0 = 0xFFFF0FF0, 0x400, 1
    area.g_pat = 0x0007040600070406
    area.sev_features = features
    if saves_fpu:
        area.x87_fcw, area.mxcsr = 0x37F, 0x1F80
    return area.to_bytes().ljust(PAGE_SIZE, b"\0")


def _set_segment(area: SaveArea, name: str, attributes: int) -> None:
    segment = getattr(area, name)
    segment.attributes, segment.limit = attributes, _LIMIT
