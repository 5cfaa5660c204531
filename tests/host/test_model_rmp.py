"""The table of owners: what hardware refuses, and invariants under any sequence of instructions."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from casemate.host.model.snp.rmp import (
    ALL_PERMISSIONS,
    READ,
    WRITE,
    Fault,
    GuestPage,
    PageState,
    Result,
    Rmp,
    Validation,
)

GPA, ASID = 0x5000, 1
AT = GuestPage(7, GPA, ASID)


def valid_page() -> Rmp:
    rmp = Rmp()
    rmp.assign(AT.page, GPA, ASID)
    rmp.pvalidate(AT, validate=True)
    return rmp


def test_page_that_its_guest_did_not_take_cannot_be_used() -> None:
    rmp = Rmp()
    assert rmp.access(AT, READ) is Fault.NESTED
    rmp.assign(AT.page, GPA, ASID)
    assert rmp[AT.page].state is PageState.GUEST_INVALID
    assert rmp.access(AT, READ) is Fault.NOT_VALIDATED
    assert rmp.pvalidate(AT, validate=True) == Validation(Result.SUCCESS, changed=True)
    assert rmp.access(AT, READ) is None
    assert rmp[AT.page].state is PageState.GUEST_VALID


def test_second_validation_changes_nothing_and_says_so() -> None:
    rmp = valid_page()
    assert rmp.pvalidate(AT, validate=True) == Validation(Result.SUCCESS, changed=False)
    assert rmp.pvalidate(AT, validate=False).changed  # type: ignore[union-attr]
    assert rmp.access(AT, READ) is Fault.NOT_VALIDATED


def test_page_that_the_host_swapped_under_a_guest_must_be_taken_anew() -> None:
    rmp = valid_page()
    other = AT._replace(page=8)
    assert rmp.access(other, READ) is Fault.NESTED
    rmp.assign(8, GPA, ASID)
    assert rmp.access(other, READ) is Fault.NOT_VALIDATED
    rmp.assign(AT.page, GPA + 0x1000, ASID)
    assert rmp.access(AT, READ) is Fault.NESTED


def test_host_and_shared_mappings_cannot_store_into_a_guests_page() -> None:
    rmp = valid_page()
    assert rmp.host_store(AT.page) is Fault.HOST_PAGE_FAULT
    assert rmp.access(AT, WRITE, private=False) is Fault.NESTED
    assert rmp.access(AT, READ, private=False) is None
    assert rmp.reclaim(AT.page) is Result.SUCCESS
    assert rmp.host_store(AT.page) is None
    assert rmp.access(AT, READ) is Fault.NESTED


def test_immutable_page_waits_for_the_firmware() -> None:
    rmp = Rmp()
    rmp.assign(AT.page, GPA, ASID, immutable=True)
    assert rmp[AT.page].state is PageState.PRE_GUEST
    assert rmp.assign(AT.page, GPA, 2) is Result.FAIL_PERMISSION
    assert rmp.reclaim(AT.page) is Result.FAIL_PERMISSION
    assert rmp.access(AT, READ) is Fault.NESTED
    assert rmp.pvalidate(AT, validate=True) == Validation(Result.FAIL_INUSE, changed=False)
    rmp.launch(AT.page, vmsa=False)
    assert rmp.access(AT, READ) is None


def test_permissions_are_given_downwards_and_never_exceeded() -> None:
    rmp = valid_page()
    assert rmp.access(AT._replace(vmpl=1), READ) is Fault.VMPL
    assert rmp.rmpadjust(AT, 1, READ) is Result.SUCCESS
    assert rmp.access(AT._replace(vmpl=1), READ) is None
    assert rmp.access(AT._replace(vmpl=1), WRITE) is Fault.VMPL
    assert rmp.rmpadjust(AT._replace(vmpl=1), 2, WRITE) is Result.FAIL_PERMISSION
    assert rmp.rmpadjust(AT, 0, READ) is Result.FAIL_PERMISSION
    assert rmp.rmpadjust(AT, 4, READ) is Result.FAIL_INPUT
    assert rmp.pvalidate(AT._replace(vmpl=1), validate=False) == Validation(
        Result.FAIL_PERMISSION, changed=False
    )


def test_save_area_is_made_by_the_highest_level_alone() -> None:
    rmp = valid_page()
    rmp.rmpadjust(AT, 1, ALL_PERMISSIONS, vmsa=True)
    assert rmp[AT.page].vmsa
    rmp.rmpadjust(AT._replace(vmpl=1), 2, READ)
    assert rmp[AT.page].vmsa
    rmp.rmpadjust(AT, 1, ALL_PERMISSIONS)
    assert not rmp[AT.page].vmsa


PAGES, GPAS, ASIDS, VMPLS = (st.integers(*span) for span in ((0, 2), (0, 2), (1, 2), (0, 3)))
PLACES = st.builds(GuestPage, PAGES, GPAS, ASIDS, VMPLS)


class AnySequence(RuleBasedStateMachine):
    """Host, firmware and guests in any order; ``taken`` is what was validated since its page changed hands."""

    def __init__(self) -> None:
        super().__init__()
        self.rmp = Rmp()
        self.taken: set[tuple[int, int, int]] = set()

    def changed_hands(self, page: int) -> None:
        self.taken = {entry for entry in self.taken if entry[0] != page}

    @rule(page=PAGES, gpa=GPAS, asid=st.integers(0, 2), immutable=st.booleans())
    def assign(self, page: int, gpa: int, asid: int, immutable: bool) -> None:
        if self.rmp.assign(page, gpa, asid, immutable=immutable) is Result.SUCCESS:
            self.changed_hands(page)

    @rule(page=PAGES)
    def reclaim(self, page: int) -> None:
        if self.rmp.reclaim(page) is Result.SUCCESS:
            self.changed_hands(page)

    @rule(page=PAGES, vmsa=st.booleans())
    def launch(self, page: int, vmsa: bool) -> None:
        if self.rmp[page].state is PageState.PRE_GUEST:
            self.rmp.launch(page, vmsa=vmsa)
            self.taken.add((page, self.rmp[page].gpa, self.rmp[page].asid))

    @rule(at=PLACES, validate=st.booleans())
    def pvalidate(self, at: GuestPage, validate: bool) -> None:
        outcome = self.rmp.pvalidate(at, validate=validate)
        if isinstance(outcome, Validation) and outcome.changed:
            key = at.page, at.gpa, at.asid
            assert (key in self.taken) is not validate
            (self.taken.add if validate else self.taken.discard)(key)

    @rule(at=PLACES, level=st.integers(-1, 4), permissions=st.integers(0, 31), vmsa=st.booleans())
    def rmpadjust(self, at: GuestPage, level: int, permissions: int, vmsa: bool) -> None:
        self.rmp.rmpadjust(at, level, permissions, vmsa=vmsa)

    @invariant()
    def guest_uses_only_what_it_took(self) -> None:
        for page in range(3):
            for gpa in range(3):
                for asid in (1, 2):
                    usable = self.rmp.access(GuestPage(page, gpa, asid), READ) is None
                    assert usable == ((page, gpa, asid) in self.taken)

    @invariant()
    def page_has_one_owner_and_only_its_own(self) -> None:
        for page in range(3):
            entry = self.rmp[page]
            assert entry.assigned or not (entry.validated or entry.immutable or entry.vmsa or entry.asid)
            assert not (entry.validated and entry.immutable)
            assert (self.rmp.host_store(page) is None) is not entry.assigned
            assert sum(entry[0] == page for entry in self.taken) <= 1


AnySequence.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
test_invariants_hold_under_any_sequence = AnySequence.TestCase
