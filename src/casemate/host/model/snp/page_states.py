"""The states of a running SNP guest's pages: the guest's instructions, the host's part, what the CPU is told of both.

Sources: AMD APM volume 2, 15.36; Linux arch/x86/kvm/svm/sev.c and guest_memfd. The host assigns a private page when the
guest first takes it, and 2 MiB at once if none of them was assigned before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from casemate.address import PAGE_SIZE, GuestRange
from casemate.host.model.cpu.page_rights import REFUSE_PRIVATE, REFUSE_SHARED, PageRights
from casemate.host.model.snp.rmp import Fault, GuestPage, Result, Rmp, Validation

LARGE = 512
"""Pages of 4 KiB in one of 2 MiB."""


class PageHost(Protocol):
    """A monitor that has a say in its guest's pages, and makes them private or shared itself."""

    def change_pages(self, page: int, count: int, *, private: bool) -> bool:
        """The guest asks for a page state change; whether the monitor agreed."""

    def pages_touched(self, page: int, *, private: bool) -> None:
        """The guest touched a page as what it is not, and will try again."""


class PageStates:
    """Pages of the guest ``asid``. ``counts`` is how often a state was changed, by who changed it to what.

    Without a ``host`` the guest gets what it asks for.
    """

    def __init__(self, rmp: Rmp, asid: int, rights: PageRights) -> None:
        self.counts: Counter[str] = Counter()
        self.host: PageHost | None = None
        self._rmp = rmp
        self._asid = asid
        self._rights = rights
        self._memory: list[range] = []
        self._shared: set[int] = set()
        self._large: set[int] = set()

    def begin(self, memory: Iterable[GuestRange]) -> None:
        """The guest is launched: all of its memory is private, and what the launch filled is validated.

        Harmless when repeated.
        """
        if self._memory:
            return
        for part in memory:
            pages = range(part.start // PAGE_SIZE, part.end // PAGE_SIZE)
            self._memory.append(pages)
            self._rights.set(pages.start, len(pages), REFUSE_PRIVATE | REFUSE_SHARED)
            for page in self._rmp.validated(pages):
                self._rights.set(page, 1, REFUSE_SHARED)
        self._rights.forget()

    @property
    def has_begun(self) -> bool:
        """Whether the guest runs, or may."""
        return bool(self._memory)

    def is_shared(self, gpa: int) -> bool:
        """Whether the host may write there."""
        return gpa // PAGE_SIZE in self._shared

    def is_save_area(self, gpa: int) -> bool:
        """Whether a vCPU can be started from a page: it is the guest's, validated, and RMPADJUST made it a VMSA."""
        entry = self._rmp[gpa // PAGE_SIZE]
        return (entry.asid, entry.gpa) == (self._asid, gpa) and entry.validated and entry.vmsa

    def pvalidate(self, gpa: int, *, large: bool, validate: bool) -> Validation | Fault:
        """PVALIDATE: the guest takes a page, or gives it up."""
        page, count = gpa // PAGE_SIZE, LARGE if large else 1
        if page % count:
            return Validation(Result.FAIL_INPUT, changed=False)
        if not self._give(page, count):
            return Fault.NESTED
        if large and page not in self._large:
            return Validation(Result.FAIL_SIZEMISMATCH, changed=False)
        found: Validation | Fault = Fault.NESTED
        for each in range(page, page + count):
            found = self._rmp.pvalidate(GuestPage(each, each * PAGE_SIZE, self._asid), validate=validate)
        if isinstance(found, Validation) and found.result is Result.SUCCESS:
            if found.changed:
                self.counts["validated" if validate else "rescinded"] += count
            self._rights.set(page, count, REFUSE_SHARED | (0 if validate else REFUSE_PRIVATE))
        self._rights.forget()
        return found

    def rmpadjust(
        self, gpa: int, target: int, permissions: int, *, large: bool, vmsa: bool
    ) -> Result | Fault:
        """RMPADJUST: what another privilege level may do with a page."""
        page, count = gpa // PAGE_SIZE, LARGE if large else 1
        if page % count:
            return Result.FAIL_INPUT
        if large and page not in self._large:
            return Result.FAIL_SIZEMISMATCH
        found: Result | Fault = Fault.NESTED
        for each in range(page, page + count):
            at = GuestPage(each, each * PAGE_SIZE, self._asid)
            found = self._rmp.rmpadjust(at, target, permissions, vmsa=vmsa)
        return found

    def ask(self, page: int, count: int, *, private: bool) -> bool:
        """The guest asks its host for a page state change; whether it got it."""
        if self.host is None or not self._has(page, count):
            return self.change(page, count, private=private)
        return self.host.change_pages(page, count, private=private)

    def change(self, page: int, count: int, *, private: bool) -> bool:
        """Pages change their state; False if the guest has no such pages."""
        if not self._has(page, count):
            return False
        for each in range(page, page + count):
            if private is (each in self._shared):
                self._change(each, private=private)
        self._rights.forget()
        return True

    def count_views(self) -> dict[str, int]:
        """Pages by who can read them."""
        pages = sum(len(part) for part in self._memory)
        return {"private": pages - len(self._shared), "shared": len(self._shared)}

    def share_touched(self, page: int) -> None:
        """The guest touched a private page through a shared mapping.

        The nested page fault ends in KVM_EXIT_MEMORY_FAULT, upon which QEMU makes the page shared; so it is here. What
        the guest held there as private is lost to it.
        """
        if self.host is not None:
            self.host.pages_touched(page, private=False)
            return
        lost = self._rmp[page].validated
        self._change(page, private=False)
        self.counts["shared unasked" + (", though validated" if lost else "")] += 1
        self._rights.forget()

    def _change(self, page: int, *, private: bool) -> None:
        self._large.discard(page - page % LARGE)
        if private:
            self._shared.remove(page)
        else:
            self._rmp.reclaim(page)
            self._shared.add(page)
        self.counts["to private" if private else "to shared"] += 1
        self._rights.set(page, 1, REFUSE_PRIVATE | (REFUSE_SHARED if private else 0))

    def _has(self, page: int, count: int) -> bool:
        return any(page in part and page + count - 1 in part for part in self._memory)

    def _give(self, page: int, count: int) -> bool:
        """Assign what is not yet assigned; False for pages that are shared, or none of the guest's."""
        pages = range(page, page + count)
        if not self._has(page, count):
            return False
        if self.host is not None and not self._shared.isdisjoint(pages):
            self.host.pages_touched(min(self._shared.intersection(pages)), private=True)
        if not self._shared.isdisjoint(pages):
            return False
        missing = [each for each in pages if not self._rmp[each].assigned]
        for each in missing:
            self._rmp.assign(each, each * PAGE_SIZE, self._asid)
        if count == LARGE and len(missing) == LARGE:
            self._large.add(page)
        elif count == 1:
            self._large.discard(page - page % LARGE)
        return True
