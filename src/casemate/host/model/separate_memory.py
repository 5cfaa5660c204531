"""Private memory of SNP guests: other memory than the host's at the same addresses (Linux api.rst, guest_memfd)."""

from __future__ import annotations

import ctypes
import mmap


class SeparateMemory:
    """Made when it is first asked for, by the host address and size of the shared memory that it stands beside."""

    def __init__(self) -> None:
        self._mappings: dict[tuple[int, int], mmap.mmap] = {}

    def of(self, hva: int, size: int) -> int:
        """Address of ``size`` bytes that nobody else uses, zero at first."""
        mapping = self._mappings.get((hva, size))
        if mapping is None:
            mapping = self._mappings[hva, size] = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return ctypes.addressof(ctypes.c_char.from_buffer(mapping))

    def close(self) -> None:
        """Give all back; harmless when repeated."""
        self._mappings.clear()
