"""The guest-physical address space: regions in, slots out (QEMU docs/devel/memory.rst, Linux api.rst)."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from casemate.address import Gpa
from casemate.errors import InternalError, UnsupportedError
from casemate.host.slots import MemorySlot
from casemate.memory.flat_view import FlatRange, FlatView, Placement
from casemate.memory.region import Alias, LeafRegion, MemoryRegion, Rom, RomDevice

if TYPE_CHECKING:
    from casemate.host.hypervisor import Vm

_ADDRESS_SPACE = 1 << 64


class MemoryMap:
    """Where regions lie, and the slots of one VM that show them to the guest.

    ``add`` and ``remove`` only take note; ``commit`` makes it so. Between two commits the guest, ``find`` and
    ``view`` see the old state.
    """

    def __init__(self, vm: Vm) -> None:
        self.view = FlatView()
        """What the guest sees, as of the last commit."""
        self._vm = vm
        self._placements: list[Placement] = []
        self._outdated = False
        # Every range that can have a slot keeps one number for good, so that a romd flip is a set difference.
        self._candidates: list[tuple[MemorySlot, RomDevice | None]] = []
        self._live: dict[int, MemorySlot] = {}

    def add(self, region: MemoryRegion, gpa: Gpa, priority: int = 0) -> None:
        """Place ``region`` at ``gpa``. It hides others by higher ``priority``, or by being added later."""
        if not 0 <= gpa < gpa + region.size <= _ADDRESS_SPACE:
            raise InternalError(
                f"region {region.name}: {region.size:#x} bytes at {gpa:#x} do not fit in 64 bits"
            )
        if (
            isinstance(region, Alias)
            and not 0 <= region.offset < region.offset + region.size <= region.target.size
        ):
            raise InternalError(f"alias {region.name} reaches outside of {region.target.name}")
        self._placements.append(Placement(region, gpa, priority))
        self._outdated = True

    def remove(self, region: MemoryRegion) -> None:
        """Take ``region`` away from wherever it lies; harmless if it lies nowhere."""
        self._placements = [placement for placement in self._placements if placement.region is not region]
        self._outdated = True

    def find(self, gpa: int) -> tuple[LeafRegion, int] | None:
        """The region that the guest sees at ``gpa`` and the offset into it, or None in a hole."""
        return self.view.find(gpa)

    def commit(self) -> None:
        """Make the slots follow regions and romd: deletions, then additions, and nothing that did not change.

        Raises HostError if the host refuses a slot, UnsupportedError for a ROM without read-only slots.
        """
        if self._outdated:
            self._rebuild()
        live, vm = self._live, self._vm
        wanted = {slot.number: slot for slot, device in self._candidates if device is None or device.romd}
        if wanted == live:
            return
        for number in [number for number, slot in live.items() if wanted.get(number) != slot]:
            vm.delete_slot(number)
            del live[number]
        for number, slot in wanted.items():
            if number not in live:
                vm.add_slot(slot)
                live[number] = slot

    @property
    def slots(self) -> tuple[MemorySlot, ...]:
        """The live slots in the order of their addresses."""
        return tuple(sorted(self._live.values(), key=lambda slot: slot.range))

    def _rebuild(self) -> None:
        view = FlatView(self._placements)
        drafts = [
            (draft, flat.region) for flat in view.ranges if (draft := self._draft_slot(flat)) is not None
        ]
        numbers = {slot._replace(number=0): slot.number for slot, _ in self._candidates}
        taken = {numbers[draft] for draft, _ in drafts if draft in numbers}
        free = (number for number in count() if number not in taken)
        self._candidates = [
            (
                draft._replace(number=numbers[draft] if draft in numbers else next(free)),
                region if isinstance(region, RomDevice) else None,
            )
            for draft, region in drafts
        ]
        self.view = view
        self._outdated = False

    def _draft_slot(self, flat: FlatRange) -> MemorySlot | None:
        pages = flat.slot_range()
        if pages is None:
            return None
        if isinstance(flat.region, Rom) and not self._vm.capabilities.readonly_memory:
            raise UnsupportedError(
                f"{flat.region.name} at {pages} must be read-only, and this VM has no read-only memory slots",
                "use a host whose KVM answers KVM_CAP_READONLY_MEM for this kind of guest",
            )
        hva, readonly = flat.slot_backing(pages)
        return MemorySlot(0, pages, hva, readonly)
