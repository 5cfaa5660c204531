"""Guest-physical memory of a modelled VM: slots over real host mappings, MMIO everywhere else.

Source: Linux virt/kvm/kvm_main.c (__kvm_set_memory_region) for the rules of slots. Whether a slot can be written to
follows from its flag and from the protection that its host mapping really has, as in KVM.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from errno import EEXIST, EINVAL, ENOENT

from casemate.address import PAGE_SIZE, GuestRange, Hva
from casemate.errors import HostError
from casemate.host import vma
from casemate.host.model.cpu.cpuid import C_BIT
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.encrypted_memory import PrivatePages, SeparateMemory, TwinMappings
from casemate.host.model.intercepts import AccessIntercepts
from casemate.host.model.slots import Piece, SlotTable
from casemate.host.slots import MemorySlot

_LOW_END = 1 << 32
_CALL = "KVM_SET_USER_MEMORY_REGION (modelled)"


class PhysicalMemory:
    """The slots of one VM, mapped into the engines of its CPUs. Writes that a slot does not take go to ``intercepts``.

    Addresses end at ``address_bits``, of an ``encrypted`` guest at the C-bit. ``takes_readonly`` is whether slots may
    be read-only. Where ``private`` has pages, the guest sees those. An ``encrypted`` guest finds everything a second
    time at addresses with the C-bit: by another host mapping of the same memory, for the engine looks for translated
    code by host address; that of an SNP guest is ``separate`` memory. Where ``mmio_faults`` (SEV-ES), memory that no
    slot backs raises #VC.
    """

    def __init__(
        self,
        engine: Engine,
        intercepts: AccessIntercepts,
        table: SlotTable,
        *,
        takes_readonly: bool = True,
        address_bits: int,
        encrypted: bool = False,
        separate: bool = False,
        mmio_faults: bool = False,
    ) -> None:
        self._cpus = [(engine, intercepts)]
        self._table = table
        self._takes_readonly = takes_readonly
        self._end = 1 << (C_BIT if encrypted else address_bits)
        self._aliases = (0, 1 << C_BIT) if encrypted else (0,)
        self._mmio_faults = mmio_faults
        self._encrypted = SeparateMemory() if separate else TwinMappings()
        self._private = PrivatePages()
        self._holes: dict[int, int] = {}
        self._holes_mapped = False

    def add_cpu(self, engine: Engine, intercepts: AccessIntercepts) -> None:
        """One more CPU that sees the same memory."""
        self._cpus.append((engine, intercepts))
        for slot in self._table.slots.values():
            for piece in self._cut(slot):
                self._map_piece(engine, piece)
            if not self._table.writable[slot.number]:
                intercepts.intercept_writes(slot)
        for start, end in self._holes.items():
            self._map_hole_of(engine, intercepts, start, end)

    def map_holes(self) -> None:
        """Make everything that no slot backs MMIO. Call before the guest runs, when most slots are there.

        The engine takes time by the page to give a hole up again, so none is mapped before.
        """
        if self._holes_mapped:
            return
        self._holes_mapped = True
        start = 0
        for slot in sorted(self._table.slots.values(), key=lambda slot: slot.range):
            self._map_hole(start, slot.range.start)
            start = slot.range.end
        self._map_hole(start, self._end)

    def add(self, slot: MemorySlot) -> None:
        """Back ``slot.range`` with host memory. Raises HostError as KVM does."""
        if slot.number in self._table.slots:
            raise HostError(_CALL, EINVAL, f"slot {slot.number} is live; delete it first")
        if not slot.range.is_page_aligned() or slot.hva % PAGE_SIZE or slot.range.end > self._end:
            raise HostError(
                _CALL, EINVAL, f"slot {slot.number} at {slot.range} is misaligned or out of reach"
            )
        if slot.readonly and not self._takes_readonly:
            raise HostError(_CALL, EINVAL, f"slot {slot.number}: this VM has no read-only memory (flags 0x2)")
        for other in self._table.slots.values():
            if other.range.intersection(slot.range):
                raise HostError(_CALL, EEXIST, f"slot {slot.number} at {slot.range} overlaps {other.range}")
        self._open_hole(slot.range)
        writable = not slot.readonly and vma.is_writable(slot.hva, slot.range.size)
        self._table.slots[slot.number] = slot
        self._table.writable[slot.number] = writable
        self._map(slot)
        if not writable:
            self._intercept_writes(slot)

    def delete(self, number: int) -> None:
        """Take a slot away; its range becomes MMIO. Raises HostError ENOENT if there is no such slot."""
        slot = self._table.slots.pop(number, None)
        if slot is None:
            raise HostError(_CALL, ENOENT, f"there is no slot {number}")
        del self._table.writable[number]
        self._unmap(slot)
        self._map_hole(slot.range.start, slot.range.end)

    def mapping_changed(self, hva: Hva, size: int) -> None:
        """Look again whether the slots over ``[hva, hva + size)`` can be written to."""
        for number, slot in self._table.slots.items():
            if slot.readonly or slot.hva >= hva + size or hva >= slot.hva + slot.range.size:
                continue
            writable = vma.is_writable(slot.hva, slot.range.size)
            if writable != self._table.writable[number]:
                for engine, _ in self._cpus:
                    for alias in self._aliases:
                        engine.protect(slot.range.start | alias, slot.range.size, writable=writable)
                self._table.writable[number] = writable
                if not writable:
                    self._intercept_writes(slot)

    def make_private(self, hva: Hva, plaintext: bytes | memoryview) -> None:
        """The guest goes on to read ``plaintext`` where the host sees what is at ``hva`` from now on.

        The pages around it become the guest's alone. Call it before the host's bytes change, and while the guest does
        not run.
        """
        before = self._private.count
        pages = self._private.add(hva, plaintext)
        if self._private.count == before:
            return
        for slot in self._table.slots.values():
            if slot.hva < pages.stop and pages.start < slot.hva + slot.range.size:
                self._unmap(slot)
                self._map(slot)

    def plaintext(self, hva: Hva, size: int) -> bytes:
        """What a guest reads of its own memory where the host has these bytes."""
        return b"".join(ctypes.string_at(*piece) for piece in self._private.cut(hva, size))

    def fill(self, gpa: int, contents: bytes) -> None:
        """Write into memory that is the guest's alone, before it runs; within one slot."""
        piece = self._table.piece_at(gpa)
        assert piece is not None, "the launch named memory of a slot"
        base = self._encrypted.of(piece.hva, piece.end - piece.start)
        ctypes.memmove(base + gpa - piece.start, contents, len(contents))

    def read_private(self, gpa: int, size: int) -> bytes:
        """Memory that is the guest's alone, within one slot; zeros where there is none."""
        piece = self._table.piece_at(gpa)
        if piece is None or gpa + size > piece.end:
            return bytes(size)
        return ctypes.string_at(
            self._encrypted.of(piece.hva, piece.end - piece.start) + gpa - piece.start, size
        )

    def count_views(self) -> dict[str, int]:
        """Pages that the guest sees as plaintext and the host as ciphertext, and pages that both see alike."""
        pages = sum(slot.range.size for slot in self._table.slots.values()) // PAGE_SIZE
        return {"private": self._private.count, "shared": pages - self._private.count}

    def close(self) -> None:
        """Give back what backs addresses with the C-bit; the engine must be gone."""
        self._encrypted.close()

    def _map(self, slot: MemorySlot) -> None:
        for piece in self._cut(slot):
            for engine, _ in self._cpus:
                self._map_piece(engine, piece)
            self._table.add_piece(piece)

    def _map_piece(self, engine: Engine, piece: Piece) -> None:
        size = piece.end - piece.start
        for alias in self._aliases:
            hva = self._encrypted.of(piece.hva, size) if alias else piece.hva
            engine.map(piece.start | alias, size, hva, writable=self._table.writable[piece.slot])

    def _unmap(self, slot: MemorySlot) -> None:
        for engine, _ in self._cpus:
            for alias in self._aliases:
                engine.unmap(slot.range.start | alias, slot.range.size)
        self._table.drop_pieces(slot.number)

    def _intercept_writes(self, slot: MemorySlot) -> None:
        for _, intercepts in self._cpus:
            intercepts.intercept_writes(slot)

    def _cut(self, slot: MemorySlot) -> Iterator[Piece]:
        gpa: int = slot.range.start
        for hva, size in self._private.cut(slot.hva, slot.range.size):
            yield Piece(gpa, gpa + size, hva, slot.number)
            gpa += size

    def _map_hole(self, start: int, end: int) -> None:
        if start >= end or not self._holes_mapped:
            return
        for first, last in [(start, end)] if self._mmio_faults else _pieces(start, end):
            for engine, intercepts in self._cpus:
                self._map_hole_of(engine, intercepts, first, last)
            self._holes[first] = last

    def _map_hole_of(self, engine: Engine, intercepts: AccessIntercepts, start: int, end: int) -> None:
        for alias in self._aliases:
            if self._mmio_faults:
                intercepts.raise_vc_at(start | alias, (end - 1) | alias)
            else:
                engine.map_mmio(start | alias, end - start)

    def _open_hole(self, wanted: GuestRange) -> None:
        overlapping = [
            (start, end) for start, end in self._holes.items() if start < wanted.end and wanted.start < end
        ]
        for start, end in overlapping:
            del self._holes[start]
            for engine, _ in self._cpus if not self._mmio_faults else ():
                for alias in self._aliases:
                    engine.unmap(start | alias, end - start)
            self._map_hole(start, wanted.start)
            self._map_hole(wanted.end, end)


def _pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Above 4 GiB they end at powers of two: the engine takes time by the page of a piece to give it up again."""
    while start < end:
        stop = min(end, max(_LOW_END, 1 << start.bit_length()))
        yield start, stop
        start = stop
