"""A modelled virtual machine: physical memory and one CPU on a Unicorn engine (Linux api.rst of KVM)."""

from __future__ import annotations

from errno import EEXIST

from casemate.address import Gpa, Hva
from casemate.errors import HostError
from casemate.host.capabilities import VmCapabilities
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import InterruptController, IoBus
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.cpu.msr import ModelSpecificRegisters
from casemate.host.model.physical_memory import PhysicalMemory
from casemate.host.model.traps import Traps
from casemate.host.model.vcpu import ModelVcpu
from casemate.host.slots import MemorySlot


class ModelVm:
    """One modelled VM; see ``casemate.host.hypervisor.Vm`` for the protocol."""

    def __init__(self, clock: GuestClock, *, fast: bool) -> None:
        self.capabilities = VmCapabilities(readonly_memory=True)
        self.msrs = ModelSpecificRegisters()
        self._clock = clock
        self._engine = Engine(self.msrs, fast=fast)
        self._traps = Traps(self._engine)
        self._memory = PhysicalMemory(self._engine, self._traps)
        self._vcpu: ModelVcpu | None = None

    @property
    def slow_reason(self) -> str | None:
        """Why the CPU does without its fast path, or None if it has it."""
        return self._engine.slow_reason

    def add_slot(self, slot: MemorySlot) -> None:
        """Back a guest range with host memory."""
        self._memory.add(slot)

    def delete_slot(self, number: int) -> None:
        """Remove a slot; its range becomes MMIO."""
        self._memory.delete(number)

    def mapping_changed(self, hva: Hva, size: int) -> None:
        """Take note of a new protection of a host mapping."""
        self._memory.mapping_changed(hva, size)

    def memory_written(self, gpa: Gpa, size: int) -> None:
        """Drop code translated from this range."""
        if self._vcpu:
            self._vcpu.memory_written(gpa, size)

    def create_vcpu(self, bus: IoBus, interrupts: InterruptController | None) -> ModelVcpu:
        """The VM's only vCPU. Raises HostError EEXIST for a second one."""
        if self._vcpu:
            raise HostError("KVM_CREATE_VCPU (modelled)", EEXIST, "the modelled host has one vCPU per VM")
        self._traps.bus = bus
        self._vcpu = ModelVcpu(self._engine, self._memory, self._traps, interrupts, self._clock)
        return self._vcpu

    def close(self) -> None:
        """Give the engine back."""
        if self._vcpu:
            self._vcpu.close()
        self._engine.close()
