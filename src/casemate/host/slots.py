"""Memory slots: which host memory backs which guest-physical range (Linux api.rst, KVM_SET_USER_MEMORY_REGION)."""

from typing import NamedTuple

from casemate.address import GuestRange, Hva


class MemorySlot(NamedTuple):
    """One slot; page-aligned. A live slot is never changed in place: it is deleted, then added again."""

    number: int
    range: GuestRange
    hva: Hva
    readonly: bool = False
