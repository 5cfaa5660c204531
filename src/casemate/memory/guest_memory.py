"""Guest memory as a device's DMA sees it: ordinary RAM and nothing else (docs/design/protection.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.address import Gpa
from casemate.events import AccessPath, EventSink, Violation, ViolationKind
from casemate.memory.map import MemoryMap
from casemate.memory.region import Ram

if TYPE_CHECKING:
    from casemate.host.hypervisor import Vm


class GuestMemory:
    """DMA. What touches flash, ROM, registers or a hole moves no byte and is reported as a violation.

    So DMA can neither fault on a protected mapping nor go around the protection through a writable view.
    """

    def __init__(self, memory_map: MemoryMap, vm: Vm, sink: EventSink) -> None:
        self._map = memory_map
        self._vm = vm
        self._sink = sink

    def read(self, gpa: int, size: int) -> bytes | None:
        """Copy ``size`` bytes out of RAM; None if any of them is no RAM."""
        pieces = self._ram_pieces(gpa, size)
        return None if pieces is None else b"".join(bytes(piece) for piece in pieces)

    def write(self, gpa: int, data: bytes | memoryview) -> bool:
        """Copy ``data`` into RAM; False, with nothing written, if any byte of the target is no RAM."""
        pieces = self._ram_pieces(gpa, len(data))
        if pieces is None:
            return False
        done = 0
        for piece in pieces:
            piece[:] = data[done : done + len(piece)]
            done += len(piece)
        if done:
            self._vm.memory_written(Gpa(gpa), done)
        return True

    def _ram_pieces(self, gpa: int, size: int) -> list[memoryview] | None:
        pieces: list[memoryview] = []
        for region, offset, length in self._map.view.pieces(gpa, size):
            if not isinstance(region, Ram):
                self._sink.report(Violation(ViolationKind.DMA, None, gpa, size, None, path=AccessPath.DMA))
                return None
            pieces.append(region.backing.writable.view[offset : offset + length])
        return pieces
