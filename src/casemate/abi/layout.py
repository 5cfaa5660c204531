"""How structs of other people's documents are declared: packed, with size and source (Python's ctypes)."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Struct(ctypes.LittleEndianStructure):
    """A fixed-layout struct. Subclasses state ``SIZE`` in bytes and ``SOURCE``, the document that defines them.

    A test holds SIZE against the layout that ctypes made of ``_fields_``.
    """

    _pack_ = 1
    _layout_ = "ms"  # what packing means, as Python 3.14 wants it said
    SIZE: ClassVar[int]
    SOURCE: ClassVar[str]

    @classmethod
    def from_bytes(cls, data: Buffer, offset: int = 0) -> Self:
        """Copy the struct out of ``data`` at ``offset``. Raises ValueError if fewer than ``SIZE`` bytes are there."""
        return cls.from_buffer_copy(data, offset)

    def to_bytes(self) -> bytes:
        """The struct's ``SIZE`` bytes."""
        return bytes(self)
