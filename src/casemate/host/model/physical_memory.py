"""Guest-physical memory of a modelled VM: slots over real host mappings, MMIO everywhere else.

Source: Linux virt/kvm/kvm_main.c (__kvm_set_memory_region) for the rules of slots. Whether a slot can be stored to
follows from its flag and from the protection that its host mapping really has, as in KVM.
"""

from __future__ import annotations

from errno import EEXIST, EINVAL, ENOENT

from casemate.address import PAGE_SIZE, Gpa, GuestRange, Hva
from casemate.errors import HostError
from casemate.host.model import vma
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.traps import Traps
from casemate.host.slots import MemorySlot

ADDRESS_SPACE = GuestRange(Gpa(0), 1 << 40)
"""What the engine's CPU can address."""

_CALL = "KVM_SET_USER_MEMORY_REGION (modelled)"


class PhysicalMemory:
    """The slots of one VM, mapped into its engine. Stores that a slot does not take go to ``traps``."""

    def __init__(self, engine: Engine, traps: Traps) -> None:
        self._engine = engine
        self._traps = traps
        self._slots: dict[int, MemorySlot] = {}
        self._writable: dict[int, bool] = {}
        self._last: MemorySlot | None = None
        self._holes: dict[int, int] = {}
        self._holes_mapped = False

    def map_holes(self) -> None:
        """Make everything that no slot backs MMIO. Call before the guest runs, when most slots are there.

        The engine takes time by the page to give a hole up again, so none is mapped before.
        """
        if self._holes_mapped:
            return
        self._holes_mapped = True
        start: int = ADDRESS_SPACE.start
        for slot in sorted(self._slots.values(), key=lambda slot: slot.range):
            self._map_hole(start, slot.range.start)
            start = slot.range.end
        self._map_hole(start, ADDRESS_SPACE.end)

    def add(self, slot: MemorySlot) -> None:
        """Back ``slot.range`` with host memory. Raises HostError as KVM does."""
        if slot.number in self._slots:
            raise HostError(_CALL, EINVAL, f"slot {slot.number} is live; delete it first")
        if not slot.range.is_page_aligned() or slot.hva % PAGE_SIZE or slot.range.end > ADDRESS_SPACE.end:
            raise HostError(
                _CALL, EINVAL, f"slot {slot.number} at {slot.range} is misaligned or out of reach"
            )
        for other in self._slots.values():
            if other.range.intersection(slot.range):
                raise HostError(_CALL, EEXIST, f"slot {slot.number} at {slot.range} overlaps {other.range}")
        self._open_hole(slot.range)
        writable = not slot.readonly and vma.is_writable(slot.hva, slot.range.size)
        self._engine.map(slot.range.start, slot.range.size, slot.hva, writable=writable)
        self._slots[slot.number] = slot
        self._writable[slot.number] = writable
        if not writable:
            self._traps.trap_stores(slot)

    def delete(self, number: int) -> None:
        """Take a slot away; its range becomes MMIO. Raises HostError ENOENT if there is no such slot."""
        slot = self._slots.pop(number, None)
        if slot is None:
            raise HostError(_CALL, ENOENT, f"there is no slot {number}")
        del self._writable[number]
        self._last = None
        self._engine.unmap(slot.range.start, slot.range.size)
        self._map_hole(slot.range.start, slot.range.end)

    def mapping_changed(self, hva: Hva, size: int) -> None:
        """Look again whether the slots over ``[hva, hva + size)`` can be stored to."""
        for number, slot in self._slots.items():
            if slot.readonly or slot.hva >= hva + size or hva >= slot.hva + slot.range.size:
                continue
            writable = vma.is_writable(slot.hva, slot.range.size)
            if writable != self._writable[number]:
                self._engine.protect(slot.range.start, slot.range.size, writable=writable)
                self._writable[number] = writable
                if not writable:
                    self._traps.trap_stores(slot)

    def hva(self, gpa: int, size: int, *, writable: bool) -> int | None:
        """Host address of ``[gpa, gpa + size)`` if one slot backs it and, if so asked, the guest may store there."""
        slot = self._last
        if slot is None or not slot.range.start <= gpa < slot.range.end:
            slot = next((slot for slot in self._slots.values() if slot.range.contains(gpa)), None)
            self._last = slot
        if slot is None or gpa + size > slot.range.end or (writable and not self._writable[slot.number]):
            return None
        return slot.hva + gpa - slot.range.start

    def _map_hole(self, start: int, end: int) -> None:
        if start < end and self._holes_mapped:
            self._engine.map_mmio(start, end - start, self._traps.mmio_read, self._traps.mmio_write)
            self._holes[start] = end

    def _open_hole(self, wanted: GuestRange) -> None:
        overlapping = [
            (start, end) for start, end in self._holes.items() if start < wanted.end and wanted.start < end
        ]
        for start, end in overlapping:
            del self._holes[start]
            self._engine.unmap(start, end - start)
            self._map_hole(start, wanted.start)
            self._map_hole(wanted.end, end)
