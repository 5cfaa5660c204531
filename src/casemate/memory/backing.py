"""Host memory behind guest memory: one memfd, mapped as often as needed (memfd_create(2), mmap(2))."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

from casemate.address import PAGE_SIZE, Hva
from casemate.errors import HostError, InternalError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value


class HostMapping:
    """``size`` bytes of this process at ``hva``; ``view`` shows them, read-only if the mapping is.

    The bytes stay mapped until the mapping is closed and the last slice of ``view`` is gone. A bare ``hva``
    keeps nothing alive: whoever hands it out (to a memory slot, say) keeps the mapping, too.
    """

    __slots__ = ("hva", "size", "view")

    def __init__(self, fd: int, size: int, readonly: bool) -> None:
        prot = mmap.PROT_READ if readonly else mmap.PROT_READ | mmap.PROT_WRITE
        address = _libc.mmap(None, size, prot, mmap.MAP_SHARED, fd, 0)
        if address is None or address == _MAP_FAILED:
            raise HostError("mmap", ctypes.get_errno(), f"{size:#x} bytes of guest memory")
        block = (ctypes.c_ubyte * size).from_address(address)
        weakref.finalize(block, _libc.munmap, address, size).atexit = False
        view = memoryview(block).cast("B")
        self.hva = Hva(address)
        self.size = size
        self.view = view.toreadonly() if readonly else view

    def close(self) -> None:
        """Give up this owner's reference; harmless when repeated."""
        self.view = memoryview(b"")


class Backing:
    """``size`` bytes of host memory called ``name``; pages cost nothing until they are touched.

    Raises HostError if the host has no memory to give.
    """

    def __init__(self, name: str, size: int) -> None:
        if size <= 0 or size % PAGE_SIZE:
            raise InternalError(
                f"backing {name}: size {size:#x} is not a positive multiple of {PAGE_SIZE:#x}"
            )
        self.name = name
        self.size = size
        try:
            self._fd = os.memfd_create(name)
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise HostError("memfd_create", error.errno or 0, f"guest memory {name}") from error
        self._mappings: list[HostMapping] = []
        self.writable = self.map_again(readonly=False)

    def map_again(self, readonly: bool) -> HostMapping:
        """One more mapping of the same bytes; it lives until ``close``."""
        mapping = HostMapping(self._fd, self.size, readonly)
        self._mappings.append(mapping)
        return mapping

    def close(self) -> None:
        """Unmap everything; harmless when repeated."""
        for mapping in self._mappings:
            mapping.close()
        self._mappings.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
