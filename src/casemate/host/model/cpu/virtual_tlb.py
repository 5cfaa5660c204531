"""The engine's TLB filled by us, so that stores to memory that was never executed are fast (unicorn/unicorn.h,
UC_TLB_VIRTUAL).

The engine checks every store to a page that could be executed for code that it translated from there. Here a page is
entered without that right until something is fetched from it (docs/decisions/0002-fast-path.md has the argument).
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

from unicorn import unicorn_const, x86_const

from casemate.host.model.cpu import unicorn_api
from casemate.host.model.cpu.engine import CR0, CR4, CS, RFLAGS, Engine
from casemate.host.model.cpu.page_walk import EXECUTE, READ, WRITE, find_page
from casemate.host.model.physical_memory import PhysicalMemory

_EFER = 0xC0000080
_CR0_PE = 1
_CPL = 3
_RFLAGS_VM = 1 << 17
_REGISTERS = (CR0, x86_const.UC_X86_REG_CR3, CR4, CS, RFLAGS, x86_const.UC_X86_REG_MSR)
_ACCESS = {
    unicorn_const.UC_MEM_READ: READ,
    unicorn_const.UC_MEM_WRITE: WRITE,
    unicorn_const.UC_MEM_FETCH: EXECUTE,
}


class _Msr(ctypes.Structure):
    _fields_ = (("index", ctypes.c_uint32), ("value", ctypes.c_uint64))


class VirtualTlb:
    """The translations of one engine, and the pages that it may have translated code from.

    It does for firmware: supervisor code that takes no page faults. At the first access that is anything else
    ``give_up`` makes the engine walk pages itself, until the next reset.
    """

    def __init__(self, engine: Engine, memory: PhysicalMemory) -> None:
        self._engine = engine
        self._entry_at = partial(memory.hva, writable=True)
        self._msr = _Msr(_EFER)
        self._values = (ctypes.c_uint64 * (len(_REGISTERS) - 1))()
        self._numbers = (ctypes.c_int * len(_REGISTERS))(*_REGISTERS)
        first = ctypes.addressof(self._values)
        addresses = [first + 8 * number for number in range(len(self._values))]
        self._pointers = (ctypes.c_void_p * len(_REGISTERS))(*addresses, ctypes.addressof(self._msr))
        self._fetched: set[int] = set()
        self.in_use = False
        engine.hook(unicorn_const.UC_HOOK_TLB_FILL, unicorn_api.TlbFill(self._fill))
        self.begin()

    def begin(self) -> None:
        """At reset, when no code is translated."""
        self.in_use = True
        self._fetched.clear()
        self._engine.uc.ctl_set_tlb_mode(unicorn_const.UC_TLB_VIRTUAL)
        self.flush()

    def give_up(self) -> None:
        """Let the engine walk pages from now on; not while it executes."""
        self.in_use = False
        self._engine.uc.ctl_set_tlb_mode(unicorn_const.UC_TLB_CPU)
        self.flush()

    def flush(self) -> None:
        """Forget all translations, as a guest asks for that changed its page tables."""
        unicorn_api.flush_tlb(self._engine.handle)

    def note_code(self, *gpas: int) -> None:
        """Code was translated from there: what is not asked for while the engine walks pages itself."""
        self._fetched.update(gpa >> 12 for gpa in gpas)

    def holds_code(self, gpa: int, size: int) -> bool:
        """Whether translated code may come from this range of guest memory."""
        return not self._fetched.isdisjoint(range(gpa >> 12, (gpa + size - 1 >> 12) + 1))

    def _fill(self, _uc: int, gva: int, kind: int, entry: Any, _user: int | None) -> bool:
        unicorn_api.reg_read_batch(self._engine.handle, self._numbers, self._pointers, len(_REGISTERS))
        cr0, cr3, cr4, cs, rflags = self._values
        if cr0 & _CR0_PE and (cs & _CPL or rflags & _RFLAGS_VM):
            return False
        access = _ACCESS[kind]
        found = find_page(gva, access, cr0, cr3, cr4, self._msr.value, self._entry_at)
        if found is None:
            return False
        gpa, rights = found
        page = gpa >> 12
        if page not in self._fetched:
            if access == EXECUTE:
                # An entry may be left by which stores to this page are not checked.
                self._fetched.add(page)
                self.flush()
            else:
                rights &= ~EXECUTE
        entry.contents.gpa, entry.contents.rights = gpa, rights
        return True
