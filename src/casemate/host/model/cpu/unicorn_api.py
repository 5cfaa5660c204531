"""The Unicorn engine's public C interface as ctypes functions (unicorn/unicorn.h, version 2.1.4).

Hooks registered here cost half of what the binding's own wrappers cost, and none of them leaks when the memory
map changes hundreds of times.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

from unicorn.unicorn_py3.unicorn import uclib as _binding

library = ctypes.CDLL(_binding._name)


def _declare(name: str, *argument_types: Any) -> Any:
    function = getattr(library, name)
    function.argtypes = argument_types
    function.restype = c_int
    return function


emu_start = _declare("uc_emu_start", c_void_p, c_uint64, c_uint64, c_uint64, c_size_t)
emu_stop = _declare("uc_emu_stop", c_void_p)
mem_map_ptr = _declare("uc_mem_map_ptr", c_void_p, c_uint64, c_size_t, c_uint32, c_void_p)
mem_protect = _declare("uc_mem_protect", c_void_p, c_uint64, c_size_t, c_uint32)
mem_unmap = _declare("uc_mem_unmap", c_void_p, c_uint64, c_size_t)
mmio_map = _declare("uc_mmio_map", c_void_p, c_uint64, c_size_t, c_void_p, c_uint64, c_void_p, c_uint64)
vmem_read = _declare("uc_vmem_read", c_void_p, c_uint64, c_uint32, c_void_p, c_size_t)
vmem_write = _declare("uc_vmem_write", c_void_p, c_uint64, c_uint32, c_void_p, c_size_t)
vmem_translate = _declare("uc_vmem_translate", c_void_p, c_uint64, c_uint32, ctypes.POINTER(c_uint64))
reg_write = _declare("uc_reg_write", c_void_p, c_int, c_void_p)
reg_read_batch = _declare("uc_reg_read_batch", c_void_p, c_void_p, c_void_p, c_int)
reg_write_batch = _declare("uc_reg_write_batch", c_void_p, c_void_p, c_void_p, c_int)
strerror = library.uc_strerror
strerror.restype = ctypes.c_char_p
library.cpu_get_ticks_x86_64.restype = c_uint64


def host_ticks() -> int:
    """The host's time-stamp counter, as the engine reads it for RDTSC."""
    return int(library.cpu_get_ticks_x86_64())


class RegisterBatch:
    """Arguments of a batch call for the same registers again and again: numbers, values and pointers to these."""

    __slots__ = ("numbers", "pointers", "values")

    def __init__(self, registers: tuple[int, ...]) -> None:
        count = len(registers)
        self.numbers = (c_int * count)(*registers)
        self.values = (c_uint64 * count)()
        first = ctypes.addressof(self.values)
        self.pointers = (c_void_p * count)(*range(first, first + 8 * count, 8))


def hook_add(
    uc: int,
    kind: int,
    callback: Any,
    begin: int = 1,
    end: int = 0,
    instruction: int | None = None,
    user_data: int = 0,
) -> None:
    """``uc_hook_add``; the caller keeps ``callback`` alive. ``begin > end`` means everywhere, ``end`` is inclusive."""
    handle = c_size_t()
    extra = () if instruction is None else (c_int(instruction),)
    function = c_void_p(callback) if isinstance(callback, int) else callback
    error = library.uc_hook_add(
        c_void_p(uc), ctypes.byref(handle), c_int(kind), function, c_void_p(user_data), c_uint64(begin), c_uint64(end),
        *extra,
    )  # fmt: skip
    if error:
        raise RuntimeError(f"uc_hook_add: {strerror(error).decode()}")
