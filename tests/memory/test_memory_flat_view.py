"""The flat view against a byte-for-byte model of who is on top."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.address import Gpa
from casemate.memory.backing import Backing
from casemate.memory.flat_view import FlatView, Placement
from casemate.memory.region import Alias, Mmio, Ram

PAGE = 0x1000
BACKING = Backing("ram", 16 * PAGE)
RAM = Ram("ram", BACKING)


class NoDevice:
    def read_mmio(self, offset: int, size: int) -> int | None:
        return None

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        return False


def placements() -> st.SearchStrategy[list[Placement]]:
    one = st.builds(
        lambda alias, start, size, priority: Placement(
            Alias("alias", RAM, start % 5, size) if alias else Mmio("mmio", size, NoDevice()),
            Gpa(start),
            priority,
        ),
        st.booleans(),
        st.integers(0, 40),
        st.integers(1, 12),
        st.integers(-1, 1),
    )
    return st.lists(one, max_size=8)


@given(placements())
@settings(derandomize=True)
def test_flat_view_shows_the_winner_at_every_byte(placed: list[Placement]) -> None:
    view = FlatView(placed)
    for gpa in range(60):
        here = [(p.priority, order, p) for order, p in enumerate(placed) if p.range.contains(gpa)]
        found = view.find(gpa)
        if not here:
            assert found is None
            continue
        region = max(here, key=lambda item: item[:2])[2]
        offset = gpa - region.gpa
        if isinstance(region.region, Alias):
            assert found == (RAM, offset + region.region.offset)
        else:
            assert found == (region.region, offset)


@given(placements())
@settings(derandomize=True)
def test_flat_view_is_sorted_and_disjoint(placed: list[Placement]) -> None:
    ranges = [flat.range for flat in FlatView(placed).ranges]
    assert all(left.end <= right.start for left, right in pairwise(ranges))


@given(placements(), st.integers(0, 60), st.integers(0, 60))
@settings(derandomize=True)
def test_flat_view_pieces_agree_with_find(placed: list[Placement], gpa: int, size: int) -> None:
    view = FlatView(placed)
    seen = []
    for region, offset, length in view.pieces(gpa, size):
        seen += [(region, offset + i) if region else None for i in range(length)]
    assert seen == [view.find(gpa + i) for i in range(size)]


def test_flat_view_trims_slots_to_whole_pages() -> None:
    register = Mmio("register", 8, NoDevice())
    view = FlatView([Placement(RAM, Gpa(0), 0), Placement(register, Gpa(0x2100), 1)])
    pages = [flat.slot_range() for flat in view.ranges]
    assert [str(page) for page in pages] == ["[0x0, 0x2000)", "None", "[0x3000, 0x10000)"]
    behind = view.ranges[2]
    slot_range = behind.slot_range()
    assert slot_range is not None
    assert behind.slot_backing(slot_range) == (BACKING.writable.hva + 0x3000, False)
