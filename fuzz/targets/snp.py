"""PVALIDATE, RMPADJUST and page state changes in any order: no page is ever two things (AMD APM volume 2, 15.36)."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from casemate.address import PAGE_SIZE, Gpa, GuestRange
from casemate.host.model.cpu.page_rights import REFUSE_PRIVATE, REFUSE_SHARED, PageRights
from casemate.host.model.snp.page_states import LARGE, PageStates
from casemate.host.model.snp.rmp import (
    ALL_PERMISSIONS,
    VMPLS,
    WRITE,
    Fault,
    GuestPage,
    PageState,
    Result,
    Rmp,
    Validation,
)
from fuzz.packed import NUMBERS, Packed
from fuzz.target import Target, count, quick

PAGES = 3 * LARGE
MEMORY = [
    GuestRange(Gpa(0), 2 * LARGE * PAGE_SIZE),
    GuestRange(Gpa((2 * LARGE + 8) * PAGE_SIZE), LARGE // 2 * PAGE_SIZE),
]
ASID, OTHER_ASID = 1, 2

_EDGES = (0, 1, LARGE - 1, LARGE, 2 * LARGE, 2 * LARGE + 8)


class Guest:
    """One guest's pages, and what its CPU is told of them."""

    def __init__(self) -> None:
        self.rmp = Rmp()
        self.rights = mmap.mmap(-1, PAGES)
        self.states = PageStates(self.rmp, ASID, PageRights(self.rights))
        self.states.begin(MEMORY)

    def do(self, choose: Packed) -> int:
        """One operation, whose answer must be one of those that are documented; returns the page that it was about."""
        what, page = choose.below(8), choose.of((*_EDGES, choose.below(PAGES), choose.below(PAGES)))
        gpa, large, flag = page * PAGE_SIZE, choose.below(4) == 0, bool(choose.below(2))
        match what:
            case 0 | 1 | 2:
                assert isinstance(self.states.pvalidate(gpa, large=large, validate=flag), (Validation, Fault))
            case 3 | 4:
                target, permissions = (
                    choose.of((1, 2, 3, choose.bits(8))),
                    choose.of((choose.bits(4), choose.bits(8))),
                )
                found = self.states.rmpadjust(gpa, target, permissions, large=large, vmsa=flag)
                assert isinstance(found, (Result, Fault))
            case 5:
                pages = LARGE if large else 1
                self.states.change(page - page % pages, pages, private=flag)
            case 6:
                # The engine refuses a shared access only of a private page.
                if self.rights[page] & REFUSE_SHARED:
                    self.states.share_touched(page)
            case _:
                self.rmp.assign(page, choose.of((page, choose.below(PAGES))) * PAGE_SIZE, choose.below(3))
        return page

    def check(self, page: int) -> None:
        """What must hold of a page, whoever did what."""
        entry, shared = self.rmp[page], self.states.is_shared(page * PAGE_SIZE)
        assert entry.state in PageState
        assert not entry.validated or entry.assigned
        assert all(0 <= each <= ALL_PERMISSIONS for each in entry.permissions)
        assert len(entry.permissions) == VMPLS
        refused = self.rights[page]
        assert not shared or refused & REFUSE_PRIVATE, "a shared page is not private"
        taken = self.rmp.access(GuestPage(page, page * PAGE_SIZE, ASID), WRITE) is None
        assert not (taken and shared) or entry.asid == ASID
        other = self.rmp.access(GuestPage(page, page * PAGE_SIZE, OTHER_ASID), WRITE)
        assert not (taken and other is None), "a page has one guest"


@quick(100)
@given(st.lists(NUMBERS, min_size=40, max_size=80))
def check(sequence: Sequence[int]) -> None:
    """Any sequence keeps the table sound."""
    guest = Guest()
    for number in sequence:
        guest.check(guest.do(Packed(number)))
    count(len(sequence))


TARGET = Target("snp", "PVALIDATE, RMPADJUST and page state changes against the RMP", check, "operations")
