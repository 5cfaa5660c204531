"""Second host mappings of shared memory, by the address of the first (mremap(2), an old size of 0)."""

from __future__ import annotations

import ctypes

from casemate.errors import HostError

_MREMAP_MAYMOVE = 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value


class TwinMappings:
    """Makes them when they are first asked for, and keeps them until closed."""

    def __init__(self) -> None:
        self._twins: dict[tuple[int, int], int] = {}

    def of(self, hva: int, size: int) -> int:
        """Another address of the ``size`` bytes at ``hva``. Raises HostError if the host refuses."""
        twin = self._twins.get((hva, size))
        if twin is None:
            twin = _libc.mremap(hva, 0, size, _MREMAP_MAYMOVE)
            if twin is None or twin == _MAP_FAILED:
                raise HostError("mremap", ctypes.get_errno(), f"{size:#x} bytes of guest memory once more")
            self._twins[hva, size] = twin
        return twin

    def close(self) -> None:
        """Unmap all; harmless when repeated."""
        for (_, size), twin in self._twins.items():
            _libc.munmap(twin, size)
        self._twins.clear()
