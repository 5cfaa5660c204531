"""What one virtual machine can do, asked of the VM and never of the system (Linux api.rst, KVM_CHECK_EXTENSION)."""

from typing import NamedTuple


class VmCapabilities(NamedTuple):
    """Answers of one VM after it was created with its final type."""

    readonly_memory: bool
    """Read-only memory slots (KVM_CAP_READONLY_MEM on the VM)."""
    has_protected_state: bool = False
    """Registers and memory are closed to the host (SEV-ES, SNP, TDX)."""
    in_kernel_irqchip: bool = False
    """The host keeps LAPIC, IOAPIC, PIC and PIT itself."""
    max_vcpus: int = 1
