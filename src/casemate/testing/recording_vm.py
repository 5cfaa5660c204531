"""A VM that runs nothing, keeps KVM's rules for memory slots, and writes down every call (Linux api.rst)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from casemate.address import PAGE_SIZE, Gpa, GuestRange, Hva
from casemate.errors import HostError
from casemate.events import Event
from casemate.host.capabilities import VmCapabilities
from casemate.host.hypervisor import FlashProgram, InterruptController, IoBus, Vcpu, VcpuFacts, VcpuRunner
from casemate.host.secure_processor import SecureProcessor
from casemate.host.slots import MemorySlot
from casemate.host.snp_processor import SnpProcessor


class RecordingVm:
    """Implements ``casemate.host.hypervisor.Vm``; ``calls`` holds tuples of method name and arguments."""

    def __init__(self, capabilities: VmCapabilities | None = None) -> None:
        self._capabilities = capabilities or VmCapabilities(readonly_memory=True)
        self.calls: list[tuple[object, ...]] = []
        self.slots: dict[int, MemorySlot] = {}

    @property
    def capabilities(self) -> VmCapabilities:
        """As given to the constructor; read-only slots by default."""
        return self._capabilities

    @property
    def secure_processor(self) -> SecureProcessor | None:
        """There is none here."""
        return None

    @property
    def snp_processor(self) -> SnpProcessor | None:
        """There is none here."""
        return None

    def add_slot(self, slot: MemorySlot) -> None:
        """Raises HostError EINVAL or EEXIST by KVM's rules."""
        self.calls.append(("add_slot", slot))
        unaligned = not slot.range.is_page_aligned() or slot.hva % PAGE_SIZE
        refused = slot.readonly and not self._capabilities.readonly_memory
        if unaligned or refused or slot.number in self.slots:
            raise HostError("KVM_SET_USER_MEMORY_REGION", errno.EINVAL, f"slot {slot.number} {slot.range}")
        if any(slot.range.intersection(other.range) for other in self.slots.values()):
            raise HostError("KVM_SET_USER_MEMORY_REGION", errno.EEXIST, f"slot {slot.number} {slot.range}")
        self.slots[slot.number] = slot

    def delete_slot(self, number: int) -> None:
        """Raises HostError ENOENT if ``number`` is not live."""
        self.calls.append(("delete_slot", number))
        if self.slots.pop(number, None) is None:
            raise HostError("KVM_SET_USER_MEMORY_REGION", errno.ENOENT, f"slot {number}")

    def mapping_changed(self, hva: Hva, size: int) -> None:
        """Only recorded."""
        self.calls.append(("mapping_changed", hva, size))

    def coalesce_mmio(self, where: GuestRange, *, enabled: bool) -> None:
        """Only recorded."""
        self.calls.append(("coalesce_mmio", where, enabled))

    def answer_programs(self, where: GuestRange, take: Callable[[list[FlashProgram]], None]) -> None:
        """Nothing to do: nobody runs."""

    def deliver_coalesced(self) -> None:
        """Only recorded."""
        self.calls.append(("deliver_coalesced",))

    def watch_writes(self, hva: Hva, size: int, on_write: Callable[[Hva], None]) -> None:
        """Only recorded."""
        self.calls.append(("watch_writes", hva, size, on_write))

    def memory_written(self, gpa: Gpa, size: int) -> None:
        """Only recorded."""
        self.calls.append(("memory_written", gpa, size))

    def create_vcpu(
        self, bus: IoBus, interrupts: InterruptController | None, *, number: int = 0, count: int = 1
    ) -> Vcpu:
        """There are no vCPUs here."""
        raise NotImplementedError("RecordingVm runs nothing")

    def vcpu_facts(self) -> list[VcpuFacts]:
        """There are no vCPUs here."""
        return []

    def runners(self) -> list[VcpuRunner]:
        """There are no vCPUs here."""
        return []

    def guest_requests(self) -> dict[str, dict[str, int]]:
        """Nothing is known."""
        return {}

    def close(self) -> None:
        """Only recorded."""
        self.calls.append(("close",))


class RecordingSink:
    """An ``EventSink`` that keeps what it is told in ``events``."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def report(self, event: Event) -> None:
        """Append it."""
        self.events.append(event)
