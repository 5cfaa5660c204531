"""What an SNP guest asks of its host beside a SEV-ES guest: page states and messages to the firmware (AMD 56421)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from casemate.abi.sev import ghcb
from casemate.address import PAGE_SIZE
from casemate.errors import FirmwareStatusError
from casemate.host.model.slots import SlotTable
from casemate.host.model.snp.ap_creation import ApCreation
from casemate.host.model.snp.page_states import LARGE, PageStates

if TYPE_CHECKING:
    from casemate.host.model.snp.psp import SnpPsp

_PAGE_NUMBER = (1 << 40) - 1


class SnpRequests:
    """The host's side of one vCPU."""

    def __init__(
        self,
        memory: SlotTable,
        states: PageStates,
        psp: SnpPsp,
        aps: ApCreation,
        refused: Callable[[], int],
    ) -> None:
        self._memory = memory
        self.aps = aps
        self.refused = refused
        """Address of the page that the vCPU was refused last."""
        self._states = states
        self._psp = psp

    def may_touch(self, gpa: int, size: int) -> bool:
        """Whether the guest shares ``[gpa, gpa + size)``, at most two pages, with its host."""
        return self._states.is_shared(gpa) and self._states.is_shared(gpa + size - 1)

    def change_page(self, request: int) -> int:
        """A page state change by MSR; returns the response's bits 63 to 32, an error if not zero."""
        return 0 if self._change(request >> 12 & _PAGE_NUMBER, request >> 52 & 0xF, 1) else 1

    def change_pages(self, hva: int) -> int:
        """The page state changes that the buffer at ``hva`` lists; returns ``SW_EXIT_INFO_2``.

        Entries that go on where the one before ended are one question to the host, as with KVM.
        """
        buffer = (ctypes.c_uint8 * ghcb.SHARED_BUFFER_SIZE).from_address(hva)
        current, last = struct.unpack_from("<HH", buffer)
        if last >= ghcb.PSC_ENTRIES:
            return ghcb.PSC_INVALID_HEADER
        entries = [_Entry.of(value) for value in struct.unpack_from(f"<{last + 1}Q", buffer, ghcb.PSC_HEADER)]
        while current <= last:
            first = entries[current]
            if not first.is_valid:
                return ghcb.PSC_INVALID_ENTRY
            end = current + 1
            while end <= last and entries[end].goes_on(first, end - current):
                end += 1
            if not self._change(first.page, first.operation, first.pages * (end - current)):
                return ghcb.PSC_INVALID_ENTRY if self._states.host is None else ghcb.PSC_GENERIC
            for index in range(current, end):
                at = ghcb.PSC_HEADER + 8 * index
                struct.pack_into("<Q", buffer, at, entries[index].value & ~0xFFF | first.pages)
            current = end
            struct.pack_into("<H", buffer, 0, current)
        return 0

    def guest_request(self, request: int, response: int) -> int | None:
        """Carry a sealed message to the firmware and its answer back, each in its page.

        Returns ``SW_EXIT_INFO_2``, or None for pages that the host cannot use.
        """
        source, target = self.shared_page(request), self.shared_page(response)
        if source is None or target is None or source == target:
            return None
        try:
            answer = self._psp.guest_request(ctypes.string_at(source, PAGE_SIZE))
        except FirmwareStatusError as error:
            return error.status
        ctypes.memmove(target, answer, PAGE_SIZE)
        return 0

    def extended_guest_request(self, request: int, response: int, data: int, pages: int) -> int | None:
        """``guest_request`` for one who has room for certificates too; this host has none to give."""
        if pages:
            hva = self.shared_page(data)
            if hva is None:
                return None
            ctypes.memset(hva, 0, ghcb.CERTIFICATES_END)
        return self.guest_request(request, response)

    def shared_page(self, gpa: int) -> int | None:
        """Host address of a page that the guest shares; None if it is none."""
        if gpa % PAGE_SIZE or not self.may_touch(gpa, PAGE_SIZE):
            return None
        return self._memory.hva(gpa, PAGE_SIZE, writable=True)

    def _change(self, page: int, operation: int, count: int) -> bool:
        if operation not in (ghcb.TO_PRIVATE, ghcb.TO_SHARED):
            return False
        return self._states.ask(page, count, private=operation == ghcb.TO_PRIVATE)


class _Entry(NamedTuple):
    """One page state change of a list."""

    value: int
    page: int
    operation: int
    pages: int

    @classmethod
    def of(cls, value: int) -> _Entry:
        return cls(value, value >> 12 & _PAGE_NUMBER, value >> 52 & 0xF, LARGE if value >> 56 & 1 else 1)

    @property
    def is_valid(self) -> bool:
        return self.value & 0xFFF <= self.pages and not self.page % self.pages

    def goes_on(self, first: _Entry, entries: int) -> bool:
        """Whether it is what ``first`` and the ``entries`` from it on are followed by."""
        same = (self.operation, self.pages) == (first.operation, first.pages)
        return self.is_valid and same and self.page == first.page + entries * first.pages
