"""Types of VMs, the argument of KVM_CREATE_VM (Linux arch/x86/include/uapi/asm/kvm.h)."""

from __future__ import annotations

from enum import IntEnum


class VmType(IntEnum):
    """Also the bit number in KVM_CAP_VM_TYPES. Names are the kernel's, without ``KVM_X86_`` and ``_VM``."""

    DEFAULT = 0
    SW_PROTECTED = 1
    SEV = 2
    SEV_ES = 3
    SNP = 4
    TDX = 5

    @property
    def kernel_name(self) -> str:
        """As the header spells it."""
        return f"KVM_X86_{self.name}_VM"
