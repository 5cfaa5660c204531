"""The save areas that a vCPU starts with (QEMU target/i386/cpu.c reset state; Linux arch/x86/kvm/svm/sev.c sync).

What a launch measures is what KVM copies out of the reset state. How it got there shows: KVM_SEV_INIT2 copies the
x87 and SSE control words too, KVM_SEV_ES_INIT leaves them zero.
"""

from __future__ import annotations

from casemate.abi.sev.save_area import REGISTERS, SEGMENT, SEGMENTS
from casemate.address import PAGE_SIZE
from casemate.digest.sev_init import SevInit

RESET_VECTOR = 0xFFFFFFF0
"""Where the first vCPU starts; the others start at the firmware's SEV-ES reset block."""

_DATA, _TABLE = (0, 0x93, 0xFFFF, 0), (0, 0, 0xFFFF, 0)
_RESET = {
    "efer": 0x1000,  # SVME: KVM sets it for every guest
    "cr4": 0x40,
    "cr0": 0x10,
    "dr7": 0x400,
    "dr6": 0xFFFF0FF0,
    "rflags": 0x2,
    "g_pat": 0x0007_0406_0007_0406,
    "xcr0": 1,
}
_FPU = {"mxcsr": 0x1F80, "x87_fcw": 0x037F}
_INIT2 = "init2"


def vmsa_page(reset_address: int, signature: int, features: int, init: SevInit) -> bytes:
    """The page (4096 bytes) of a vCPU that starts at ``reset_address`` with CPUID ``signature``."""
    segments = dict.fromkeys(SEGMENTS, _DATA)
    segments["cs"] = 0xF000, 0x9B, 0xFFFF, reset_address & 0xFFFF0000
    segments["gdtr"] = segments["idtr"] = _TABLE
    segments["ldtr"], segments["tr"] = (0, 0x82, 0xFFFF, 0), (0, 0x8B, 0xFFFF, 0)
    registers = {**_RESET, "rip": reset_address & 0xFFFF, "rdx": signature, "sev_features": features}
    if init == _INIT2:
        registers |= _FPU
    page = bytearray(PAGE_SIZE)
    for index, name in enumerate(SEGMENTS):
        SEGMENT.pack_into(page, index * SEGMENT.size, *segments[name])
    for name, value in registers.items():
        offset, size = REGISTERS[name]
        page[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(page)


def vmsa_pages(count: int, ap_reset: int, signature: int, features: int, init: SevInit) -> tuple[bytes, ...]:
    """The pages of ``count`` vCPUs in their order; all but the first are the same object."""
    first = vmsa_page(RESET_VECTOR, signature, features, init)
    if count == 1:
        return (first,)
    return (first, *(vmsa_page(ap_reset, signature, features, init),) * (count - 1))
