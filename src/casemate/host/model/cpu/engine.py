"""One Unicorn engine as an x86 CPU in its reset state, with guest-physical memory mapped by the caller.

Sources: unicorn/unicorn.h 2.1.4; Intel SDM volume 3, chapter 9 (state after RESET#).
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Iterable

from casemate.address import PAGE_SIZE
from casemate.errors import InternalError
from casemate.host.model.cpu import unicorn_api
from casemate.host.model.cpu.cpuid import new_cpu
from casemate.host.model.cpu.hooks import EngineHooks, hook_address
from casemate.host.model.cpu.msr import ModelSpecificRegisters
from casemate.host.model.cpu.processor import Processor
from casemate.host.model.cpu.unicorn_api import unicorn_const, x86_const

READ = unicorn_const.UC_PROT_READ
WRITE = unicorn_const.UC_PROT_WRITE
EXECUTE = unicorn_const.UC_PROT_EXEC

RIP = x86_const.UC_X86_REG_RIP
RSP = x86_const.UC_X86_REG_RSP
RFLAGS = x86_const.UC_X86_REG_RFLAGS
CS = x86_const.UC_X86_REG_CS
SS = x86_const.UC_X86_REG_SS
CR0 = x86_const.UC_X86_REG_CR0
CR2 = x86_const.UC_X86_REG_CR2
CR4 = x86_const.UC_X86_REG_CR4
IDTR = x86_const.UC_X86_REG_IDTR
GDTR = x86_const.UC_X86_REG_GDTR
RAX = x86_const.UC_X86_REG_RAX
RBX = x86_const.UC_X86_REG_RBX
RCX = x86_const.UC_X86_REG_RCX
RDX = x86_const.UC_X86_REG_RDX
RSI = x86_const.UC_X86_REG_RSI
RDI = x86_const.UC_X86_REG_RDI

RESET_IP = 0xFFF0
_RESET_CS = 0xF000
_RESET_CS_BASE = 0xFFFF0000
_RESET_LIMIT = 0xFFFF
"""Of the descriptor tables."""
_SEGMENT = struct.Struct("<I4xQ")
"""Selector and base, as the engine keeps a segment."""
_SEGMENT_BYTES = 24
_SEGMENTS_BEFORE_CS = {"es": 1, "cs": 0, "ss": -1, "ds": -2, "fs": -3, "gs": -4}


class Engine:
    """A CPU that has what its ``processor`` has.

    All methods but ``stop`` and ``kick`` belong to the thread that runs it, and none but these two after ``close``.

    Raises UnsupportedError where the engine cannot be hooked.
    """

    def __init__(self, msrs: ModelSpecificRegisters, processor: Processor) -> None:
        self.msrs = msrs
        self._is_open = True
        self._closing = threading.RLock()
        """Held while another thread uses what ``close`` frees; re-entered by handlers of signals."""
        self._scratch = ctypes.c_uint64()
        self._scratch_at = ctypes.addressof(self._scratch)
        self._scratch_ref = ctypes.byref(self._scratch)
        self._batches: dict[tuple[int, ...], unicorn_api.RegisterBatch] = {}
        real_mode = new_cpu(unicorn_const.UC_MODE_16, processor)
        real_mode.write_register(CS, _RESET_CS)
        real_mode.write_table(IDTR, 0, _RESET_LIMIT)
        real_mode.write_table(GDTR, 0, _RESET_LIMIT)
        self._reset_state = real_mode.save()
        self._state = real_mode.save()
        self._cs_base_at = self._start_below_four_gib()
        self.uc = new_cpu(unicorn_const.UC_MODE_64, processor)
        self.uc.enable_exits()
        self.handle = self.uc.handle
        self.uc.restore(self._reset_state)  # only now has the engine a CPU to attach to
        self.hooks = EngineHooks(self.handle, msrs, processor)
        self._ram: dict[int, tuple[int, int]] = {}
        self.reset()

    def reset(self) -> None:
        """Real mode with the registers of RESET#. The caller starts execution at ``RESET_IP``."""
        self.uc.restore(self._reset_state)
        self.write(RIP, RESET_IP)
        self.msrs.reset()
        self.hooks.reset_delivery()

    def init(self) -> None:
        """What INIT leaves: the registers of RESET#, and the time-stamp counter and the model's MSRs as they were."""
        offset = self.hooks.tsc_offset
        self.uc.restore(self._reset_state)
        self.hooks.tsc_offset = offset
        self.write(RIP, RESET_IP)
        self.hooks.reset_delivery()

    def start_at(self, address: int, selector: int = _RESET_CS) -> None:
        """Go on in real mode at ``address``, as a save area or a start-up IPI says.

        With another ``selector`` than that of the reset state the segment begins at ``address``.
        """
        base = address & ~0xFFFF if selector == _RESET_CS else address
        self.hooks.set_code_segment(selector, base)
        self.hooks.rip.value = address - base

    def close(self) -> None:
        """Give the engine back, with the GiB of address space that it has for its translations.

        One that is left in the middle of an instruction, as a monitor that goes away leaves it, stays until it is
        collected.
        """
        with self._closing:
            if not self._is_open:
                return
            self._is_open = False
            self.hooks.detach()
            if not self.hooks.is_executing:
                del self.uc

    def hook(self, kind: int, name: str, **where: int) -> None:
        """Register a function of the hooks' library, with this CPU (see ``unicorn_api.hook_add``)."""
        unicorn_api.hook_add(self.handle, kind, hook_address(name), user_data=self.hooks.user_data, **where)

    def start(self, rip: int) -> int:
        """Execute from ``rip`` until stopped, halted or faulted; returns the engine's error number (0 is none)."""
        return self.hooks.run(rip)

    def stop(self) -> None:
        """End ``start`` at the next block; from any thread."""
        with self._closing:
            if self._is_open:
                unicorn_api.emu_stop(self.handle)

    def kick(self) -> None:
        """Have the CPU look for interrupts soon; from any thread, and it may be lost."""
        with self._closing:
            if self._is_open:
                self.hooks.kick()

    def read(self, register: int) -> int:
        """One general, control or segment register."""
        return self.read_many((register,))[0]

    def read_many(self, registers: tuple[int, ...]) -> list[int]:
        """Several registers at once."""
        batch = self._batch(registers)
        unicorn_api.reg_read_batch(self.handle, batch.numbers, batch.pointers, len(registers))
        return batch.values[:]

    def write(self, register: int, value: int) -> None:
        """Set one general or control register."""
        self._scratch.value = value
        unicorn_api.reg_write(self.handle, register, self._scratch_at)

    def write_many(self, values: dict[int, int]) -> None:
        """Set several registers; unlike ``write`` also right inside an interrupt hook, RIP included."""
        batch = self._batch(tuple(values))
        batch.values[:] = list(values.values())
        unicorn_api.reg_write_batch(self.handle, batch.numbers, batch.pointers, len(values))

    def _batch(self, registers: tuple[int, ...]) -> unicorn_api.RegisterBatch:
        batch = self._batches.get(registers)
        if batch is None:
            batch = self._batches[registers] = unicorn_api.RegisterBatch(registers)
        # The engine writes 2 bytes of a segment register: what an earlier use left behind must not show.
        ctypes.memset(batch.values, 0, ctypes.sizeof(batch.values))
        return batch

    def table_register(self, register: int) -> tuple[int, int]:
        """Base and limit of IDTR or GDTR."""
        return self.uc.read_table(register)

    def set_msr(self, index: int, value: int) -> None:
        """Set a model-specific register from outside."""
        if not self.msrs.write(index, value):
            self.uc.write_msr(index, value)

    def instruction_address(self) -> int:
        """Linear address of the next instruction; code segments are taken to be flat outside of real mode."""
        rip, cr0 = self.read_many((RIP, CR0))
        return rip if cr0 & 1 else self.segment_base("cs") + rip

    def code_at(self, address: int, size: int = 15) -> bytes | None:
        """Code at a linear address, by default as long as an instruction can be; less if nothing follows its page."""
        in_page = PAGE_SIZE - address % PAGE_SIZE
        return self.read_virtual(address, size) or self.read_virtual(address, min(size, in_page))

    def code_here(self, size: int = 15) -> bytes:
        """Code at the instruction pointer, wherever its segment begins; nothing if it cannot be read."""
        base = 0 if self.code_bits() == 64 else self.segment_base("cs")
        return self.code_at(base + self.read(RIP), size) or b""

    def linear_rip(self) -> int:
        """Linear address of the next instruction, wherever its segment begins."""
        return self.read(RIP) + (0 if self.code_bits() == 64 else self.segment_base("cs"))

    def set_breakpoints(self, places: Iterable[int], watches: Iterable[tuple[int, int, bool]]) -> None:
        """Stop before the instructions at these linear addresses, and behind accesses; only while not executing.

        ``watches`` are linear address, size, and whether reads count, too. What is not mapped now is not watched.
        """
        self.hooks.debugger.set_breakpoints(places)
        found = [(self.translate(address), size, reads) for address, size, reads in watches]
        self.hooks.debugger.watch((gpa, gpa + size, reads) for gpa, size, reads in found if gpa is not None)
        self.flush_translations()

    def privilege(self) -> int:
        """The current privilege level."""
        cs, cr0 = self.read_many((CS, CR0))
        return cs & 3 if cr0 & 1 else 0

    def _start_below_four_gib(self) -> int:
        """Give the reset state the code base that no register interface can set; returns where a state keeps it."""
        state = bytes(self._reset_state)
        at = state.find(_SEGMENT.pack(_RESET_CS, _RESET_CS << 4)) + 8
        if at < 8:
            raise InternalError("this build of the engine keeps its code segment elsewhere")
        ctypes.c_uint64.from_address(self._reset_state.address + at).value = _RESET_CS_BASE
        return at

    def segment_base(self, name: str) -> int:
        """The hidden base of the segment register ``cs``, ``ds``, ..."""
        self.uc.save(self._state)
        at = self._cs_base_at - _SEGMENT_BYTES * _SEGMENTS_BEFORE_CS[name]
        return ctypes.c_uint64.from_address(self._state.address + at).value

    def code_bits(self) -> int:
        """Width of the code that runs: 64 in long mode, else by the code segment's descriptor; 16 in real mode."""
        cs, cr0 = self.read_many((CS, CR0))
        if not cr0 & 1:
            return 16
        base, _ = self.table_register(GDTR)
        descriptor = self.read_virtual(base + (cs & ~7), 8) or bytes(8)
        return 64 if descriptor[6] & 0x20 else 32 if descriptor[6] & 0x40 else 16

    def read_virtual(self, gva: int, size: int) -> bytes | None:
        """Memory as the guest sees it, or None where it is not mapped."""
        buffer = ctypes.create_string_buffer(size)
        error = unicorn_api.vmem_read(self.handle, gva, READ, buffer, size)
        self._forget_lookup_fault()
        return None if error else buffer.raw

    def write_virtual(self, gva: int, data: bytes) -> bool:
        """Write as the guest would; False where it could not."""
        error = unicorn_api.vmem_write(self.handle, gva, WRITE, data, len(data))
        self._forget_lookup_fault()
        return not error

    def translate(self, gva: int, access: int = READ) -> int | None:
        """Guest-virtual to guest-physical, or None where it is not mapped for ``access``."""
        error = unicorn_api.vmem_translate(self.handle, gva, access, self._scratch_ref)
        self._forget_lookup_fault()
        return None if error else self._scratch.value

    def _forget_lookup_fault(self) -> None:
        # The engine looks addresses up as if the guest did. A miss leaves a page fault behind.
        self.hooks.forget_lookup()

    def map(self, gpa: int, size: int, hva: int, *, writable: bool) -> None:
        """Back guest memory by host memory. Read-only memory must be mapped writable first to be protected at all."""
        self._ram[gpa] = size, hva
        self.hooks.memory_changed(self._ram)
        self._check(
            "uc_mem_map_ptr", unicorn_api.mem_map_ptr(self.handle, gpa, size, READ | WRITE | EXECUTE, hva)
        )
        if not writable:
            self.protect(gpa, size, writable=False)

    def protect(self, gpa: int, size: int, *, writable: bool) -> None:
        """Change whether writes to mapped memory are allowed."""
        access = READ | EXECUTE | (WRITE if writable else 0)
        self._check("uc_mem_protect", self.hooks.change_memory(unicorn_api.mem_protect, gpa, size, access))

    def unmap(self, gpa: int, size: int) -> None:
        """Remove mapped memory or MMIO."""
        self._ram = {start: what for start, what in self._ram.items() if not gpa <= start < gpa + size}
        self.hooks.memory_changed(self._ram)
        self._check("uc_mem_unmap", self.hooks.change_memory(unicorn_api.mem_unmap, gpa, size))

    def map_mmio(self, gpa: int, size: int) -> None:
        """Send accesses to the hooks' callbacks; they get the region's ``gpa`` as user data."""
        read, write = hook_address("hook_mmio_read"), hook_address("hook_mmio_write")
        self._check("uc_mmio_map", unicorn_api.mmio_map(self.handle, gpa, size, read, gpa, write, gpa))

    def flush_translations(self) -> None:
        """Forget all translated code; only while not executing."""
        self.uc.flush_blocks()
        self.hooks.translations_flushed()

    def drop_translation(self, start: int, end: int) -> None:
        """Forget translated code in ``[start, end)`` (guest-virtual)."""
        self.uc.drop_blocks(start, end)

    @staticmethod
    def error_text(error: int) -> str:
        """The engine's words for an error number."""
        return str(unicorn_api.strerror(error).decode())

    def _check(self, call: str, error: int) -> None:
        if error:
            raise InternalError(f"{call}: {self.error_text(error)}")
