"""The reverse map table: who owns a page of memory, and whether its owner took it (AMD APM volume 2, 15.36; AMD 56860).

A pure state machine: pages are numbers, instructions return what the processor would, nothing is raised.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple

VMPLS = 4
ALL_PERMISSIONS = 0xF
READ, WRITE, USER_EXECUTE, SUPERVISOR_EXECUTE = 1, 2, 4, 8
"""Permissions of a VMPL on a page."""


class PageState(StrEnum):
    """AMD 56860, chapter 5, as far as a guest without swapping gets."""

    HYPERVISOR = "hypervisor"
    """The host's; also whatever a guest shares."""
    PRE_GUEST = "pre-guest"
    """Given to a guest, and immutable until the firmware filled it."""
    GUEST_INVALID = "guest-invalid"
    """Given to a guest that did not take it yet."""
    GUEST_VALID = "guest-valid"


class Result(IntEnum):
    """EAX of RMPUPDATE, PVALIDATE and RMPADJUST."""

    SUCCESS = 0
    FAIL_INPUT = 1
    FAIL_PERMISSION = 2
    FAIL_INUSE = 3
    FAIL_SIZEMISMATCH = 6


class Fault(StrEnum):
    """How an access ends that the table does not allow."""

    HOST_PAGE_FAULT = "#PF with the RMP bit: the host written into a page of a guest"
    NESTED = "nested page fault with the RMP bit: the page is not this guest's at this address"
    NOT_VALIDATED = "#VC 0x404 (page not validated): the guest did not take this page"
    VMPL = "nested page fault with the VMPL bit: the privilege level may not do this"


class GuestPage(NamedTuple):
    """A page as a guest reaches it: where it is, under which address, and who asks."""

    page: int
    gpa: int
    asid: int
    vmpl: int = 0


class Validation(NamedTuple):
    """What PVALIDATE leaves behind: EAX, and CF clear if it changed something."""

    result: Result
    changed: bool


class RmpEntry:
    """One entry; ``gpa`` and ``asid`` are 0 for pages that are not assigned."""

    __slots__ = ("asid", "assigned", "gpa", "immutable", "permissions", "validated", "vmsa")

    def __init__(
        self, *, assigned: bool = False, immutable: bool = False, gpa: int = 0, asid: int = 0
    ) -> None:
        self.assigned = assigned
        self.immutable = immutable
        self.validated = self.vmsa = False
        self.gpa = gpa
        self.asid = asid
        self.permissions = [ALL_PERMISSIONS, 0, 0, 0]
        """Of each VMPL."""

    @property
    def state(self) -> PageState:
        """The state that the bits stand for."""
        if not self.assigned:
            return PageState.HYPERVISOR
        if self.immutable:
            return PageState.PRE_GUEST
        return PageState.GUEST_VALID if self.validated else PageState.GUEST_INVALID


class Rmp:
    """The table of a host; a page that was never named is the hypervisor's."""

    def __init__(self) -> None:
        self._entries: dict[int, RmpEntry] = {}

    def __getitem__(self, page: int) -> RmpEntry:
        entry = self._entries.get(page)
        if entry is None:
            entry = self._entries[page] = RmpEntry()
        return entry

    def validated(self, pages: range) -> list[int]:
        """Those of ``pages`` that a guest took."""
        return [page for page, entry in self._entries.items() if entry.validated and page in pages]

    # The host's instruction.

    def assign(self, page: int, gpa: int, asid: int, *, immutable: bool = False) -> Result:
        """RMPUPDATE that gives a page to a guest; validation and permissions of before are lost."""
        if self[page].immutable:
            return Result.FAIL_PERMISSION
        if asid <= 0:
            return Result.FAIL_INPUT
        self._entries[page] = RmpEntry(assigned=True, immutable=immutable, gpa=gpa, asid=asid)
        return Result.SUCCESS

    def reclaim(self, page: int) -> Result:
        """RMPUPDATE that takes a page back, whether its guest agrees or not."""
        if self[page].immutable:
            return Result.FAIL_PERMISSION
        self._entries[page] = RmpEntry()
        return Result.SUCCESS

    # The firmware's commands.

    def launch(self, page: int, *, vmsa: bool) -> None:
        """The firmware filled a page in state PRE_GUEST: it is the guest's, of VMPL 0 alone."""
        entry = self[page]
        entry.immutable, entry.validated, entry.vmsa = False, True, vmsa

    def release(self, page: int) -> None:
        """SNP_PAGE_RECLAIM: the firmware gives a page back that it did not take, whatever its state."""
        self._entries[page] = RmpEntry()

    # The guest's instructions.

    def pvalidate(self, at: GuestPage, *, validate: bool) -> Validation | Fault:
        """PVALIDATE of a 4 KiB page. A guest must treat a page that was valid already as an attack."""
        entry = self[at.page]
        if not self._owns(entry, at):
            return Fault.NESTED
        if at.vmpl or entry.immutable:
            return Validation(Result.FAIL_PERMISSION if at.vmpl else Result.FAIL_INUSE, changed=False)
        changed = entry.validated is not validate
        entry.validated = validate
        if changed and validate:
            entry.permissions = [ALL_PERMISSIONS, 0, 0, 0]
            entry.vmsa = False
        return Validation(Result.SUCCESS, changed)

    def rmpadjust(
        self, at: GuestPage, target: int, permissions: int, *, vmsa: bool = False
    ) -> Result | Fault:
        """RMPADJUST: permissions of a less privileged VMPL; VMPL 0 may make the page a save area, or no more one."""
        if fault := self.access(at, READ):
            return fault
        if not 0 <= target < VMPLS or permissions & ~ALL_PERMISSIONS:
            return Result.FAIL_INPUT
        entry = self[at.page]
        if target <= at.vmpl or permissions & ~entry.permissions[at.vmpl]:
            return Result.FAIL_PERMISSION
        entry.permissions[target] = permissions
        if at.vmpl == 0:
            entry.vmsa = vmsa
        return Result.SUCCESS

    # Accesses.

    def access(self, at: GuestPage, permission: int, *, private: bool = True) -> Fault | None:
        """Whether a guest may do this (``READ`` and so on) to a page, through a private or a shared mapping."""
        entry = self[at.page]
        if not private:
            return Fault.NESTED if entry.assigned and permission & WRITE else None
        if entry.immutable or not self._owns(entry, at):
            return Fault.NESTED
        if not entry.validated:
            return Fault.NOT_VALIDATED
        return Fault.VMPL if permission & ~entry.permissions[at.vmpl] else None

    def host_store(self, page: int) -> Fault | None:
        """Whether the host may write into a page; it may read any, and sees ciphertext."""
        return Fault.HOST_PAGE_FAULT if self[page].assigned else None

    def _owns(self, entry: RmpEntry, at: GuestPage) -> bool:
        return entry.assigned and (entry.asid, entry.gpa) == (at.asid, at.gpa)
