"""The interrupt controllers of a board: casemate's devices, or the host's own (docs/design/machine.md)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from casemate.devices.bus import Bus
from casemate.events import EventSink
from casemate.host.clock import GuestClock
from casemate.memory.map import MemoryMap

if TYPE_CHECKING:
    from casemate.devices.device import IrqLine, Resettable
    from casemate.host.hypervisor import Vm
    from casemate.host.irqchip import KernelIrqchip
    from casemate.machine.own_irqchip import MachineInterrupts, OwnIrqchip


class HostIrqchip:
    """The host's: nothing is on the bus, and the vCPU's reset resets it. ``lock`` keeps other vCPUs from devices."""

    def __init__(self, vm: KernelIrqchip, lock: AbstractContextManager[object]) -> None:
        self._vm = vm
        self._lock = lock
        self.controller: MachineInterrupts | None = None
        self.irq: Callable[[int], IrqLine] = vm.irq_line
        self.resettable: list[Resettable] = []

    def watch(self, poll: Callable[[], None], deadline: Callable[[], int | None] | None = None) -> None:
        """Let a device look for its input when the vCPU is woken for it."""

        def poll_alone() -> None:
            with self._lock:
                poll()

        self._vm.watch(poll_alone)

    def place(self, bus: Bus, memory_map: MemoryMap) -> None:
        """Nothing to place."""


def make_irqchip(
    vm: Vm,
    clock: GuestClock,
    sink: EventSink | None,
    lock: AbstractContextManager[object],
    vcpus: int,
) -> OwnIrqchip | HostIrqchip:
    """The host's controllers where this VM has them, else casemate's; these tell ``sink`` of firmware's progress."""
    if vm.capabilities.in_kernel_irqchip:
        keeper: Any = vm  # a KernelIrqchip, as its capabilities say
        return HostIrqchip(keeper, lock)
    from casemate.machine.own_irqchip import OwnIrqchip

    return OwnIrqchip(clock, sink, vcpus)
