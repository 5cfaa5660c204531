"""Which host memory lies behind a guest-physical address of a modelled VM (Linux virt/kvm/kvm_main.c)."""

from typing import NamedTuple

from casemate.address import Gpa
from casemate.host.model.cpu.cpuid import C_BIT
from casemate.host.slots import MemorySlot


class Piece(NamedTuple):
    """A part of a slot that lies in one piece in host memory: ``[start, end)`` at ``hva``."""

    start: int
    end: int
    hva: int
    slot: int


class SlotTable:
    """The live slots of one VM, whether each can be written to, and the pieces of host memory behind them."""

    def __init__(self) -> None:
        self.slots: dict[int, MemorySlot] = {}
        self.writable: dict[int, bool] = {}
        """By slot number: what the slot's flag and its host mapping allow the guest."""
        self._pieces: list[Piece] = []
        self._last: Piece | None = None

    def add_piece(self, piece: Piece) -> None:
        """A part of a slot is mapped."""
        self._pieces.append(piece)

    def drop_pieces(self, number: int) -> None:
        """Nothing of slot ``number`` is mapped any more."""
        self._pieces = [piece for piece in self._pieces if piece.slot != number]
        self._last = None

    def piece_at(self, gpa: int) -> Piece | None:
        """The piece behind an address."""
        piece = self._last
        if piece is None or not piece.start <= gpa < piece.end:
            piece = next((piece for piece in self._pieces if piece.start <= gpa < piece.end), None)
            self._last = piece
        return piece

    def hva(self, gpa: int, size: int, *, writable: bool) -> int | None:
        """Host address of ``[gpa, gpa + size)`` if it lies in one piece and, if so asked, the guest may write there."""
        gpa &= ~(1 << C_BIT)
        piece = self.piece_at(gpa)
        if piece is None or gpa + size > piece.end or (writable and not self.writable[piece.slot]):
            return None
        return piece.hva + gpa - piece.start

    def slot_at(self, gpa: int) -> MemorySlot | None:
        """The slot behind an address; None is MMIO."""
        gpa &= ~(1 << C_BIT)
        return next((slot for slot in self.slots.values() if slot.range.contains(Gpa(gpa))), None)
