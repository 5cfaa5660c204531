"""The Unicorn engine's public C interface as ctypes functions (unicorn/unicorn.h and unicorn/x86.h, version 2.1.4).

The package's own binding is left out: it takes 60 ms to load, its hooks cost twice what those registered here do, and
they leak when the memory map changes hundreds of times.
"""

from __future__ import annotations

import ctypes
import struct
import weakref
from ctypes import c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any

from casemate import native
from casemate.submodules import load_submodules

if TYPE_CHECKING:
    from unicorn import unicorn_const, x86_const
else:
    unicorn_const, x86_const = load_submodules("unicorn", "unicorn_const", "x86_const")

__all__ = ["Uc", "hook_add", "host_ticks", "library", "unicorn_const", "x86_const"]

library = ctypes.CDLL(str(native.engine()))


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
_open = _declare("uc_open", c_int, c_int, c_void_p)
_reg_read = _declare("uc_reg_read", c_void_p, c_int, c_void_p)
_context_alloc = _declare("uc_context_alloc", c_void_p, c_void_p)
_context_save = _declare("uc_context_save", c_void_p, c_void_p)
_context_restore = _declare("uc_context_restore", c_void_p, c_void_p)
library.uc_close.argtypes = library.uc_context_free.argtypes = (c_void_p,)
library.uc_context_size.argtypes, library.uc_context_size.restype = (c_void_p,), c_size_t
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


def _check(call: str, error: int) -> None:
    if error:
        raise RuntimeError(f"{call}: {strerror(error).decode()}")


class Context:
    """The registers of an engine, and its internal state, as bytes at ``address``."""

    def __init__(self, engine: int) -> None:
        found = c_void_p()
        _check("uc_context_alloc", _context_alloc(engine, ctypes.byref(found)))
        self.address: int = found.value or 0
        self.size: int = library.uc_context_size(engine)
        weakref.finalize(self, library.uc_context_free, self.address).atexit = False

    def __bytes__(self) -> bytes:
        return ctypes.string_at(self.address, self.size)


_MSR = struct.Struct("<I4xQ")
"""``uc_x86_msr``: number and value."""
_TABLE = struct.Struct("<H6xQII")
"""``uc_x86_mmr``: selector, base, limit, flags; those of GDTR and IDTR have neither selector nor flags."""


class Uc:
    """An x86 engine in a mode, ``UC_MODE_64`` or another; closed when it is collected.

    Its CPU, and with it most registers, is made when it is first used. Raises RuntimeError if a call fails.
    """

    def __init__(self, mode: int) -> None:
        found = c_void_p()
        _check("uc_open", _open(unicorn_const.UC_ARCH_X86, mode, ctypes.byref(found)))
        self.handle: int = found.value or 0
        self._close = weakref.finalize(self, library.uc_close, self.handle)
        self._close.atexit = False

    def keep_open(self) -> None:
        """It is in no state to be closed."""
        self._close.detach()

    def set_model(self, model: int) -> None:
        """Which CPU is made, ``UC_CPU_X86_EPYC`` or another."""
        self._control("UC_CTL_CPU_MODEL", c_int(model))

    def enable_exits(self) -> None:
        """Stop at addresses of a list, not at the one that it is started with."""
        self._control("UC_CTL_UC_USE_EXITS", c_int(1))

    def flush_blocks(self) -> None:
        """Forget all translated code."""
        self._control("UC_CTL_TB_FLUSH")

    def drop_blocks(self, start: int, end: int) -> None:
        """Forget the code that was translated from these addresses."""
        self._control("UC_CTL_TB_REMOVE_CACHE", c_uint64(start), c_uint64(end))

    def _control(self, name: str, *arguments: Any) -> None:
        kind: int = getattr(unicorn_const, name)
        control = kind | len(arguments) << 26 | unicorn_const.UC_CTL_IO_WRITE << 30
        _check(name, library.uc_ctl(c_void_p(self.handle), c_uint32(control), *arguments))

    def read_register(self, register: int, size: int = 8) -> int:
        """Up to ``size`` bytes: 10 of an x87 register, 16 of an XMM one."""
        buffer = ctypes.create_string_buffer(size)
        _check("uc_reg_read", _reg_read(self.handle, register, buffer))
        return int.from_bytes(buffer.raw, "little")

    def write_register(self, register: int, value: int, size: int = 8) -> None:
        """Likewise."""
        _check("uc_reg_write", reg_write(self.handle, register, value.to_bytes(size, "little")))

    def read_table(self, register: int) -> tuple[int, int]:
        """Base and limit of GDTR or IDTR."""
        _, base, limit, _ = _TABLE.unpack(
            self.read_register(register, _TABLE.size).to_bytes(_TABLE.size, "little")
        )
        return base, limit

    def write_table(self, register: int, base: int, limit: int) -> None:
        """Likewise."""
        _check("uc_reg_write", reg_write(self.handle, register, _TABLE.pack(0, base, limit, 0)))

    def read_msr(self, index: int) -> int:
        """What the engine itself keeps of the model-specific registers."""
        buffer = ctypes.create_string_buffer(_MSR.pack(index, 0), _MSR.size)
        _check("uc_reg_read", _reg_read(self.handle, x86_const.UC_X86_REG_MSR, buffer))
        value: int = _MSR.unpack(buffer.raw)[1]
        return value

    def write_msr(self, index: int, value: int) -> None:
        """Likewise."""
        _check("uc_reg_write", reg_write(self.handle, x86_const.UC_X86_REG_MSR, _MSR.pack(index, value)))

    def save(self, context: Context | None = None) -> Context:
        """The state as it is, in ``context`` or in a new one."""
        context = context or Context(self.handle)
        _check("uc_context_save", _context_save(self.handle, context.address))
        return context

    def restore(self, context: Context) -> None:
        """Take the state from there."""
        _check("uc_context_restore", _context_restore(self.handle, context.address))
