"""A local APIC in the kernel and the other controllers in the monitor (Linux api.rst, KVM_CAP_SPLIT_IRQCHIP).

What the monitor's 8259s say comes by KVM_INTERRUPT, what its I/O APIC says as messages.
"""

from __future__ import annotations

from collections.abc import Callable

from casemate.address import LAPIC_BASE
from casemate.devices.lapic import LAPIC_SIZE
from casemate.host.clock import GuestClock
from casemate.userkvm.irqchip import Irqchip
from casemate.userkvm.library import Inside

_SLAVE_LINES, _LINES = 8, 8
_INITIALISE, _CASCADE, _AUTO_EOI = 0x11, 2, 0x03
"""What the 8259 is told: a first word with a fourth to come, where it is, and to end interrupts by itself."""


class SplitIrqchip(Irqchip):
    """``vector`` of KVM_INTERRUPT waits in an 8259 that nobody else sees."""

    def __init__(self, clock: GuestClock) -> None:
        super().__init__(clock)
        self.routes = {}
        self.taken: Callable[[], None] = lambda: None
        """Called when the vCPU took an interrupt."""
        self.ended: list[int] = []
        """Level-triggered vectors whose end the monitor was not told yet."""
        self.on_ended: Callable[[], None] = lambda: None
        self.lapic.on_eoi = self._end

    def place_lapic(self, inside: Inside) -> None:
        """Serve its registers without leaving KVM_RUN."""
        inside.add_mmio(LAPIC_BASE, LAPIC_SIZE)

    def inject(self, vector: int) -> None:
        """KVM_INTERRUPT."""
        with self.lock:
            for line in range(_LINES):
                self.pic.set_irq(_SLAVE_LINES + line, False)
            for chip, base in ((self.pic.master, 0), (self.pic.slave, vector & 0xF8)):
                for offset, value in ((0, _INITIALISE), (1, base), (1, _CASCADE * 2), (1, _AUTO_EOI), (1, 0)):
                    chip.write_port(offset, 1, value)
            self.pic.set_irq(_SLAVE_LINES + vector % _LINES, True)
        self._kick_if_pending()

    def acknowledge(self) -> int:
        """The vector."""
        vector = super().acknowledge()
        if not self.pic.pending():
            self.taken()
        return vector

    def _end(self, vector: int) -> None:
        self.ended.append(vector)
        self.on_ended()
