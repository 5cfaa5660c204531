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
from fuzz.target import Target, count, quick

PAGES = 3 * LARGE
MEMORY = [GuestRange(Gpa(0), 2 * LARGE * PAGE_SIZE), GuestRange(Gpa((2 * LARGE + 8) * PAGE_SIZE), LARGE // 2 * PAGE_SIZE)]
ASID, OTHER_ASID = 1, 2

pages = st.one_of(st.sampled_from((0, 1, LARGE - 1, LARGE, 2 * LARGE, 2 * LARGE + 8)), st.integers(0, PAGES - 1))
operations = st.one_of(
    st.tuples(st.just("pvalidate"), pages, st.booleans(), st.booleans()),
    st.tuples(st.just("rmpadjust"), pages, st.integers(0, 255), st.integers(0, 255), st.booleans(), st.booleans()),
    st.tuples(st.just("change"), pages, st.booleans(), st.booleans()),
    st.tuples(st.just("touch"), pages),
    st.tuples(st.just("assign"), pages, pages, st.sampled_from((0, ASID, OTHER_ASID))),
)


class Guest:
    """One guest's pages, and what its CPU is told of them."""

    def __init__(self) -> None:
        self.rmp = Rmp()
        self.refused = 0
        self.rights = mmap.mmap(-1, PAGES)
        self.states = PageStates(self.rmp, ASID, PageRights(self.rights, lambda: self.refused, lambda: None))
        self.states.begin(MEMORY)

    def do(self, name: str, page: int, *given: int) -> None:
        """One operation; its answer must be one of those that are documented."""
        gpa = page * PAGE_SIZE
        match name, given:
            case "pvalidate", (large, validate):
                found = self.states.pvalidate(gpa, large=bool(large), validate=bool(validate))
                assert isinstance(found, (Validation, Fault))
            case "rmpadjust", (target, permissions, large, vmsa):
                adjusted = self.states.rmpadjust(gpa, target, permissions, large=bool(large), vmsa=bool(vmsa))
                assert isinstance(adjusted, (Result, Fault))
            case "change", (large, private):
                count_of = LARGE if large else 1
                self.states.change(page - page % count_of, count_of, private=bool(private))
            case "touch", ():
                # The engine refuses a shared access only of a private page.
                if self.rights[page] & REFUSE_SHARED:
                    self.refused = gpa
                    self.states.share_touched()
            case "assign", (where, asid):
                self.rmp.assign(page, where * PAGE_SIZE, asid)

    def check(self, page: int) -> None:
        """What must hold of a page, whoever did what."""
        entry, shared = self.rmp[page], self.states.is_shared(page * PAGE_SIZE)
        assert entry.state in PageState
        assert not entry.validated or entry.assigned
        assert all(0 <= each <= ALL_PERMISSIONS for each in entry.permissions) and len(entry.permissions) == VMPLS
        refused = self.rights[page]
        assert not shared or refused & REFUSE_PRIVATE, "a shared page is not private"
        taken = self.rmp.access(GuestPage(page, page * PAGE_SIZE, ASID), WRITE) is None
        assert not (taken and shared) or entry.asid == ASID
        other = self.rmp.access(GuestPage(page, page * PAGE_SIZE, OTHER_ASID), WRITE)
        assert not (taken and other is None), "a page has one guest"


@quick(150)
@given(st.lists(operations, min_size=40, max_size=80))
def check(sequence: Sequence[tuple[object, ...]]) -> None:
    """Any sequence keeps the table sound."""
    guest = Guest()
    for name, page, *given_ in sequence:
        assert isinstance(name, str) and isinstance(page, int)
        guest.do(name, page, *given_)  # type: ignore[arg-type]
        guest.check(page)
    count(len(sequence))


TARGET = Target("snp", "PVALIDATE, RMPADJUST and page state changes against the RMP", check, "operations")
