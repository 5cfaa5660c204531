"""The flat view: what the guest finds at every address, overlaps resolved (QEMU docs/devel/memory.rst)."""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from casemate.address import PAGE_SIZE, Gpa, GuestRange, Hva
from casemate.memory.region import Alias, LeafRegion, MemoryRegion, Mmio, Ram, RomDevice


class Placement(NamedTuple):
    """A region at a place; where placements overlap the higher ``priority`` wins, then the later one."""

    region: MemoryRegion
    gpa: Gpa
    priority: int

    @property
    def range(self) -> GuestRange:
        """The addresses it claims."""
        return GuestRange(self.gpa, self.region.size)


class FlatRange(NamedTuple):
    """``range`` shows the guest ``region`` (aliases are resolved) from byte ``offset`` on."""

    range: GuestRange
    region: LeafRegion
    offset: int

    def slot_range(self) -> GuestRange | None:
        """The whole pages inside, which a slot could back; None for registers and for less than a page."""
        if isinstance(self.region, Mmio):
            return None
        start = -(-self.range.start // PAGE_SIZE) * PAGE_SIZE
        end = self.range.end // PAGE_SIZE * PAGE_SIZE
        return GuestRange(Gpa(start), end - start) if start < end else None

    def slot_backing(self, pages: GuestRange) -> tuple[Hva, bool]:
        """Host address of ``pages`` and whether their slot must be read-only."""
        region = self.region
        assert not isinstance(region, Mmio)
        mapping, readonly = region.backing.writable, not isinstance(region, Ram)
        if isinstance(region, RomDevice):
            mapping, readonly = region.slot_mapping or mapping, region.slot_readonly
        return Hva(mapping.hva + self.offset + pages.start - self.range.start), readonly


class FlatView:
    """Sorted, non-overlapping, immutable."""

    __slots__ = ("_ends", "_regions", "_starts", "ranges")

    def __init__(self, placements: Iterable[Placement] = ()) -> None:
        self.ranges = _flatten(list(placements))
        self._starts = [flat.range.start for flat in self.ranges]
        self._ends = [flat.range.end for flat in self.ranges]
        self._regions = [(flat.region, flat.offset - flat.range.start) for flat in self.ranges]

    def find(self, gpa: int) -> tuple[LeafRegion, int] | None:
        """The region that the guest sees at ``gpa`` and the offset into it, or None in a hole."""
        index = bisect_right(self._starts, gpa) - 1
        if index < 0 or gpa >= self._ends[index]:
            return None
        region, delta = self._regions[index]
        return region, gpa + delta

    def pieces(self, gpa: int, size: int) -> Iterable[tuple[LeafRegion | None, int, int]]:
        """Cut ``[gpa, gpa + size)`` into (region or None in a hole, offset into it, bytes)."""
        end = gpa + size
        while gpa < end:
            index = bisect_right(self._starts, gpa) - 1
            if index >= 0 and gpa < self._ends[index]:
                region, delta = self._regions[index]
                stop = min(end, self._ends[index])
                yield region, gpa + delta, stop - gpa
            else:
                stop = min(end, self._starts[index + 1]) if index + 1 < len(self._starts) else end
                yield None, 0, stop - gpa
            gpa = stop


def _flatten(placements: list[Placement]) -> tuple[FlatRange, ...]:
    # A stable sort puts the winner of every overlap last.
    placements.sort(key=lambda placement: placement.priority)
    edges = sorted({edge for p in placements for edge in (p.range.start, p.range.end)})
    flat: list[FlatRange] = []
    owner: Placement | None = None
    for start, end in pairwise(edges):
        winner = next((p for p in reversed(placements) if p.range.contains(start)), None)
        if winner is not None and winner is owner and flat[-1].range.end == start:
            start = flat.pop().range.start
        if winner is not None:
            flat.append(_resolve(winner, GuestRange(Gpa(start), end - start)))
        owner = winner
    return tuple(flat)


def _resolve(placement: Placement, span: GuestRange) -> FlatRange:
    offset = span.start - placement.gpa
    if isinstance(placement.region, Alias):
        return FlatRange(span, placement.region.target, offset + placement.region.offset)
    return FlatRange(span, placement.region, offset)
