"""Writes to code of this process (proc(5), /proc/pid/mem; mprotect(2))."""

from __future__ import annotations

import ctypes
import mmap

_MEMORY = "/proc/self/mem"
_EXECUTABLE = mmap.PROT_READ | mmap.PROT_EXEC

_libc = ctypes.CDLL(None, use_errno=True)


def overwrite(address: int, code: bytes) -> None:
    """Put ``code`` at ``address``, which is mapped executable. Raises OSError if this system does not let anybody."""
    try:
        with open(_MEMORY, "r+b", buffering=0) as memory:
            memory.seek(address)
            memory.write(code)
    except OSError:  # some kernels let nobody write to a read-only mapping (proc_mem.force_override)
        _overwrite_mapping(address, code)


def _overwrite_mapping(address: int, code: bytes) -> None:
    # It stays executable all the time: another thread may be in it.
    _protect(address, len(code), _EXECUTABLE | mmap.PROT_WRITE)
    ctypes.memmove(address, code, len(code))
    _protect(address, len(code), _EXECUTABLE)


def _protect(address: int, size: int, protection: int) -> None:
    start = address & -mmap.PAGESIZE
    if _libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(address + size - start), protection):
        raise OSError(ctypes.get_errno(), "mprotect refuses to make the code writable")
