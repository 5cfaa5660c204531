"""Guest-physical and host-virtual addresses and half-open ranges of them (Linux Documentation/virt/kvm/api.rst)."""

from typing import NamedTuple, NewType, Self

Gpa = NewType("Gpa", int)
"""A guest-physical address, in bytes."""

Hva = NewType("Hva", int)
"""A host-virtual address in this process, in bytes."""

PAGE_SIZE = 4096
"""Bytes in the smallest x86 page, the granularity of memory slots and of mprotect."""

FOUR_GIB = 1 << 32

LAPIC_BASE, IOAPIC_BASE = Gpa(0xFEE00000), Gpa(0xFEC00000)
"""Where a PC has the local APIC's registers and the first I/O APIC's (Intel MultiProcessor Specification 1.4, 3.6)."""


class _Bounds(NamedTuple):
    start: Gpa
    size: int


class GuestRange(_Bounds):
    """A half-open range of guest-physical addresses: ``start`` inclusive, ``start + size`` exclusive, in bytes.

    Raises ValueError if it would be empty or start below zero.
    """

    __slots__ = ()

    def __new__(cls, start: Gpa, size: int) -> Self:
        if start < 0 or size <= 0:
            raise ValueError(f"empty or negative guest range: start {start:#x}, size {size:#x}")
        return super().__new__(cls, start, size)

    @property
    def end(self) -> Gpa:
        """First address behind the range."""
        return Gpa(self.start + self.size)

    def contains(self, gpa: int, size: int = 1) -> bool:
        """Whether all of ``[gpa, gpa + size)`` lies inside."""
        return self.start <= gpa and gpa + size <= self.start + self.size

    def intersection(self, other: "GuestRange") -> "GuestRange | None":
        """The part that both ranges share, or None."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return GuestRange(start, end - start) if start < end else None

    def is_page_aligned(self) -> bool:
        """Whether both ends lie on 4 KiB boundaries."""
        return not (self.start | self.size) & (PAGE_SIZE - 1)

    def __str__(self) -> str:
        return f"[{self.start:#x}, {self.end:#x})"
