"""Interrupt controllers that the host keeps: LAPIC, I/O APIC, 8259s and PIT (Linux api.rst, KVM_CREATE_IRQCHIP)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class KernelIrqchip(Protocol):
    """What a ``Vm`` also is where its ``capabilities.in_kernel_irqchip`` says so."""

    def irq_line(self, gsi: int) -> Callable[[bool], None]:
        """The wire to input ``gsi`` (0 to 23) of the host's controllers; from any thread."""

    def watch(self, poll: Callable[[], None]) -> None:
        """Call ``poll`` on a vCPU's thread whenever that vCPU was woken: a device's input may have come."""
