"""What an encrypted guest's memory is made of on the host (AMD APM volume 2, 15.34 and 15.36).

The modelled CPU knows no encryption. Private pages of SEV and SEV-ES guests are shown to it as plaintext of their own,
at addresses with the C-bit by a second mapping of the same memory; those of SNP guests lie in other memory.
"""

import ctypes
import mmap
from bisect import insort
from collections.abc import Iterator
from typing import NamedTuple

from casemate.address import PAGE_SIZE, Hva
from casemate.errors import HostError

_MREMAP_MAYMOVE = 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value


class TwinMappings:
    """Second host mappings of shared memory, made when they are first asked for (mremap(2), an old size of 0)."""

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


class SeparateMemory:
    """Private memory of SNP guests, beside the shared memory at the same addresses (Linux api.rst, guest_memfd)."""

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


class _Run(NamedTuple):
    """Pages of host range ``[start, end)``, kept in ``shadow`` at ``address``."""

    start: int
    end: int
    address: int
    shadow: mmap.mmap


class PrivatePages:
    """The plaintext of all encrypted pages of one guest, by the host address of the ciphertext."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def add(self, hva: Hva, plaintext: bytes | memoryview) -> range:
        """Keep ``plaintext``, and what its pages hold around it; returns the host range of these pages."""
        start = hva - hva % PAGE_SIZE
        end = -(-(hva + len(plaintext)) // PAGE_SIZE) * PAGE_SIZE
        view, at = memoryview(plaintext), start
        while at < end:
            run = self._find(at) or self._keep(at, self._gap_end(at, end))
            first, last = max(at, hva), min(run.end, hva + len(plaintext))
            run.shadow[first - run.start : last - run.start] = view[first - hva : last - hva]
            at = run.end
        return range(start, end)

    @property
    def count(self) -> int:
        """How many pages are the guest's alone."""
        return sum(run.end - run.start for run in self._runs) // PAGE_SIZE

    def cut(self, hva: int, size: int) -> Iterator[tuple[int, int]]:
        """Cut ``[hva, hva + size)`` into (host address that the guest shall see, bytes)."""
        at, end = hva, hva + size
        for run in self._runs:
            if run.end <= at or run.start >= end:
                continue
            if at < run.start:
                yield at, run.start - at
                at = run.start
            stop = min(run.end, end)
            yield run.address + at - run.start, stop - at
            at = stop
        if at < end:
            yield at, end - at

    def _find(self, page: int) -> _Run | None:
        return next((run for run in self._runs if run.start <= page < run.end), None)

    def _gap_end(self, page: int, end: int) -> int:
        return min([end, *(run.start for run in self._runs if run.start > page)])

    def _keep(self, start: int, end: int) -> _Run:
        """A run of pages that are about to be filled, but for what the first and the last one hold around that."""
        shared = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        shadow = mmap.mmap(-1, end - start, flags=shared)
        address = ctypes.addressof(ctypes.c_char.from_buffer(shadow))
        for page in (start, end - PAGE_SIZE):
            ctypes.memmove(address + page - start, page, PAGE_SIZE)
        run = _Run(start, end, address, shadow)
        insort(self._runs, run)
        return run
