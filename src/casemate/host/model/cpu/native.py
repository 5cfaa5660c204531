"""The hooks of the modelled CPU: small patches inside the pinned Unicorn 2.1.4 (docs/decisions/0002-fast-path.md).

The engine's public API makes every store to executable memory slow, cannot trap RDMSR, and can only be stopped
between blocks at a price. This module rewrites the entry of four exported engine functions for that. Each is
recognised by the exact bytes of its first instructions; when any differs (another build, another processor) nothing
is touched and there is no modelled CPU.

Stores: the engine keeps a store slow while its page may be executed, since it finds out only then that code
changed. Here a page that is filled into the TLB for data is entered as not executable, so its stores turn fast; a
page that is ever fetched from is remembered in ``_fetched`` and from then on entered as the engine would. The first
fetch of a page flushes the TLB, so that no store can go on through an entry made before.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

from unicorn import unicorn_const

from casemate.abi.sev.ghcb import ExitCode
from casemate.errors import UnsupportedError
from casemate.host.model.cpu import native_delivery, page_rights, vc
from casemate.host.model.cpu.code_writer import overwrite
from casemate.host.model.cpu.msr import ModelSpecificRegisters
from casemate.host.model.cpu.page_rights import PageRights
from casemate.host.model.cpu.unicorn_api import hook_add, library

FAULT_VECTOR = 0x2600
"""Pseudo exception number under which a store that was undone arrives at the interrupt hook."""

_PAGE_INDEX_BITS = 24
_CELLS = 4096
_TABLES = _CELLS * 8
"""Behind the cells of all CPUs: the address of each one's table of page rights, 0 for none."""
_RDX, _RAX, _RCX = 2, 0, 1
_CELL_OF_RDI = b"\x48\x89\xf8\x48\xc1\xe8\x06\x25" + struct.pack("<I", _CELLS - 1)
"""mov rax, rdi; shr rax, 6; and eax, CELLS - 1"""

_PROLOGUES = {
    "x86_cpu_tlb_fill_x86_64": "41574156415541 89cd41544989f4",
    "tlb_set_page_with_attrs_x86_64": "41574989f731f641564989fe",
    "helper_rdmsr_x86_64": "53488b4c24084889fb31d2be7c000000",
    "helper_wrmsr_x86_64": "55488b4c24084889fdba01000000be7c000000",
    "raise_exception_ra_x86_64": "4989d14883ec084531c031c931d2e8",
    "resume_all_vcpus_x86_64": "415541544989fc55534883ec084c8bafb801000041c7859881000000000000"
    "4c89ef41c645150041c785a0810000ffffffff",
    "check_exit_request_x86_64": "488bb77099000080bef207000000",
    "tlb_flush_x86_64": "be07000000e9",
    **vc.PROLOGUES,
    **native_delivery.PROLOGUES,
    **page_rights.PROLOGUES,
}
_ENGINE_CPU = 0x1B8
_ENGINE_NO_EXIT_REQUEST = 0x7F2
_CPU_HALTED = 0x8198
_CPU_EXCEPTION_INDEX = 0x81A0
_CPU_ENV = 0x8A50
_ENV_OLD_EXCEPTION = 5496
_ENV_RIP = 0x80
_ENV_TSC_OFFSET = 0x1588
_STUB_BYTES = 8192

library.cpu_get_ticks_x86_64.restype = ctypes.c_uint64
_Decider = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
"""Gets the address of a CPU's state."""
_HANDLED, _NATIVE, _RAISE = 0, 1, 2
StoreDecider = ctypes.CFUNCTYPE(ctypes.c_uint32)
"""Decides about the store in ``EngineHooks.fault``: 0 to ignore it, or the exception that undoes its instruction."""


@dataclass(slots=True)
class _Attached:
    msrs: ModelSpecificRegisters
    cell: int
    acknowledge: Callable[[], int]


def _address(symbol: str) -> int:
    return ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value or 0


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def _jump(target: int) -> bytes:
    return b"\xff\x25\x00\x00\x00\x00" + _u64(target)  # jmp [rip+0]


def unavailable() -> str | None:
    """Why the engine cannot be hooked here, or None if it can."""
    if platform.machine() != "x86_64":
        return f"the modelled CPU needs an x86-64 host, this is {platform.machine()}"
    for symbol, text in _PROLOGUES.items():
        prologue = bytes.fromhex(text)
        if not hasattr(library, symbol):
            return f"the engine does not export {symbol}"
        if ctypes.string_at(_address(symbol), len(prologue)) != prologue and not _installed:
            return f"the engine's {symbol} is not the one of version 2.1.4"
    for address, old, new in _delivery_changes():
        if ctypes.string_at(address, len(old)) not in (old, new):
            return "the engine's delivery of exceptions is not the one of version 2.1.4"
    return None


def _delivery_changes() -> list[tuple[int, bytes, bytes]]:
    hard_interrupt = _address("do_interrupt_x86_hardirq_x86_64")
    return native_delivery.error_code_changes(native_delivery.delivery_function(hard_interrupt))


class _Patches:
    """The process-wide stubs, and which engines use them."""

    def __init__(self) -> None:
        self.attached: dict[int, _Attached] = {}
        self._fetched = mmap.mmap(-1, 1 << _PAGE_INDEX_BITS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._cells = mmap.mmap(-1, 2 * _TABLES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._stubs = mmap.mmap(-1, _STUB_BYTES, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._stubs_at = _buffer_address(self._stubs)
        self._stubs_end = 0
        self._shared: dict[bytes, int] = {}
        self._replace("x86_cpu_tlb_fill_x86_64", 14, self._tlb_fill())
        self._replace("tlb_set_page_with_attrs_x86_64", 12, self._tlb_set_page())
        self._rdmsr = _Decider(self._on_rdmsr)
        self._wrmsr = _Decider(self._on_wrmsr)
        self._replace("helper_rdmsr_x86_64", 16, self._decide(self._rdmsr))
        self._replace("helper_wrmsr_x86_64", 14, self._decide(self._wrmsr))
        raiser, cells = _address("raise_exception_err_ra_x86_64"), _buffer_address(self._cells)
        for symbol, (length, stub) in vc.helper_stubs(cells, _CELLS, _CPU_ENV, raiser).items():
            self._replace(symbol, length, stub)
        walk = page_rights.page_walk(_CELL_OF_RDI, cells, _TABLES)
        for symbol, length in (
            ("x86_ldl_phys_x86_64", 18), ("x86_ldq_phys_x86_64", 18), ("x86_stl_phys_notdirty_x86_64", 14),
        ):  # fmt: skip
            self._replace(symbol, length, walk)
        self.store_stub = self._emit(self._refused_store())
        self.unmapped_stub = self._emit(vc.unmapped_hook(raiser))
        self._take_over_delivery()

    def _take_over_delivery(self) -> None:
        deliver = _address("x86_cpu_do_interrupt_x86_64")
        self.interrupt_stub = self._emit(native_delivery.interrupt_hook(deliver))
        self.invalid_stub = self._emit(native_delivery.invalid_hook(deliver))
        for address, _, new in _delivery_changes():
            overwrite(address, new)
        self._acknowledge = _Decider(self._on_acknowledge)
        acknowledge = ctypes.cast(self._acknowledge, ctypes.c_void_p).value or 0
        self._replace("do_interrupt_x86_hardirq_x86_64", 13, native_delivery.hard_interrupt(acknowledge))
        flags = _address("helper_read_eflags_x86_64"), _address("helper_write_eflags_x86_64")
        raiser = _address("raise_exception_ra_x86_64")
        self._replace("helper_syscall_x86_64", 12, native_delivery.syscall(*flags, raiser))
        room = _address("helper_syscall_x86_64") + native_delivery.DEAD_CODE_OF_SYSCALL
        abort = self._emit(native_delivery.abort(_address("raise_exception_err_ra_x86_64")))
        overwrite(room, _jump(abort))
        entry = _address("cpu_abort_x86_64")
        overwrite(entry, native_delivery.near_jump(entry, room))

    def emit_once(self, *codes: bytes) -> list[int]:
        """Place codes that every engine shares; returns where they are."""
        for code in codes:
            if code not in self._shared:
                self._shared[code] = self._emit(code)
        return [self._shared[code] for code in codes]

    def _emit(self, code: bytes) -> int:
        start = self._stubs_end
        self._stubs[start : start + len(code)] = code
        self._stubs_end = (start + len(code) + 15) & ~15
        return self._stubs_at + start

    def _replace(self, symbol: str, length: int, stub: Callable[[int], bytes]) -> int:
        """Send calls of ``symbol`` to ``stub``; returns where the original function can still be entered."""
        entry = _address(symbol)
        original = self._emit(vc.relocate(symbol, entry, ctypes.string_at(entry, length)))
        target = self._emit(stub(original))
        overwrite(entry, b"\x48\xb8" + _u64(target) + b"\xff\xe0")  # mov rax, target; jmp rax
        return original

    def _tlb_fill(self) -> Callable[[int], bytes]:
        """Note the kind of access (ecx) and whether it is only a lookup (r9d) in the cell of this CPU (rdi)."""
        return lambda original: (
            _CELL_OF_RDI
            + b"\x49\xba" + _u64(_buffer_address(self._cells))  # mov r10, cells
            + b"\x45\x89\xcb\x41\xc1\xe3\x08\x41\x09\xcb"  # mov r11d, r9d; shl r11d, 8; or r11d, ecx
            + b"\x45\x89\x1c\xc2"  # mov [r10 + rax*8], r11d
            + _jump(original)
        )  # fmt: skip

    def _tlb_set_page(self) -> Callable[[int], bytes]:
        """Arguments: rdi cpu, rsi vaddr, rdx paddr, ecx attributes, r8d protection (4 = execute)."""
        saved = b"\x57\x56\x52\x51\x41\x50\x41\x51\x48\x83\xec\x08"  # push rdi rsi rdx rcx r8 r9; sub rsp, 8
        restored = b"\x48\x83\xc4\x08\x41\x59\x41\x58\x59\x5a\x5e\x5f"
        flush = saved + b"\x48\xb8" + _u64(_address("tlb_flush_x86_64")) + b"\xff\xd0" + restored
        first_fetch = b"\x43\xc6\x04\x13\x01" + flush  # mov byte [r11 + r10], 1; tlb_flush(cpu)

        def stub(original: int) -> bytes:
            go_on = _jump(original)
            fetched_before = b"\x43\x80\x3c\x13\x00"  # cmp byte [r11 + r10], 0
            for_data = fetched_before + b"\x75\x04" + b"\x41\x83\xe0\xfb" + go_on  # jne +4; and r8d, ~4
            for_fetch = fetched_before + b"\x75" + bytes([len(first_fetch)]) + first_fetch + go_on
            return (
                _CELL_OF_RDI
                + b"\x49\xba" + _u64(_buffer_address(self._cells))  # mov r10, cells
                + b"\x49\x8d\x04\xc2"  # lea rax, [r10 + rax*8]
                + b"\x83\x78\x04\x00"  # cmp dword [rax + 4], 0 (an engine that is not ours)
                + b"\x75" + bytes([len(go_on)]) + go_on  # jne: go on below
                + page_rights.check(_TABLES, _address("raise_exception_err_ra_x86_64"))
                + b"\x49\x89\xd2\x49\xc1\xea\x0c"  # mov r10, rdx; shr r10, 12
                + b"\x41\x81\xe2" + struct.pack("<I", (1 << _PAGE_INDEX_BITS) - 1)  # and r10d, mask
                + b"\x49\xbb" + _u64(_buffer_address(self._fetched))  # mov r11, fetched
                + b"\x80\x38\x02"  # cmp byte [rax], 2 (an instruction fetch)
                + b"\x74" + bytes([len(for_data)])  # je for_fetch
                + for_data
                + for_fetch
            )  # fmt: skip

        return stub

    def _decide(self, decider: object) -> Callable[[int], bytes]:
        """Ask Python (state in rdi): 0 it is done, 1 the engine shall do it, 2 raise #VC."""
        target = ctypes.cast(decider, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
        leave = vc.raise_exception(ExitCode.MSR, _address("raise_exception_err_ra_x86_64"))
        return lambda original: (
            b"\x57\x48\xb8" + _u64(target) + b"\xff\xd0\x5f"  # push rdi; mov rax, decider; call rax; pop rdi
            + b"\x83\xf8\x01\x74" + bytes([3 + len(leave)])  # cmp eax, 1; je: the engine
            + b"\x77\x01\xc3"  # ja +1; ret
            + leave
            + _jump(original)
        )  # fmt: skip

    def _refused_store(self) -> bytes:
        """A write-protection hook (rdx address, rcx size, r8 value, r9 user data) that asks what to do about a store.

        An exception leaves the instruction undone; Python has returned when it is raised.
        """
        return (
            b"\x49\x89\x51\x08\x49\x89\x49\x10\x4d\x89\x41\x18"  # mov [r9+8], rdx; [r9+16], rcx; [r9+24], r8
            + b"\x41\x51\x41\xff\x51\x20\x41\x59"  # push r9; call [r9+32]; pop r9
            + b"\x85\xc0\x75\x06"  # test eax, eax; jnz raise
            + b"\xb8\x01\x00\x00\x00\xc3"  # mov eax, 1; ret
            + b"\x49\x8b\x39\x89\xc6\x31\xd2"  # raise: mov rdi, [r9]; mov esi, eax; xor edx, edx
            + _jump(_address("raise_exception_ra_x86_64"))
        )  # fmt: skip

    def _on_rdmsr(self, env: int) -> int:
        engine = self.attached.get(env)
        if engine is None:
            return _NATIVE
        registers = (ctypes.c_uint64 * 3).from_address(env)
        index = registers[_RCX] & 0xFFFFFFFF
        if engine.msrs.intercepts(index):
            return _RAISE
        value = engine.msrs.read(index)
        if value is None:
            return _NATIVE
        registers[_RAX], registers[_RDX] = value & 0xFFFFFFFF, value >> 32
        return _HANDLED

    def _on_wrmsr(self, env: int) -> int:
        engine = self.attached.get(env)
        if engine is None:
            return _NATIVE
        registers = (ctypes.c_uint64 * 3).from_address(env)
        index = registers[_RCX] & 0xFFFFFFFF
        if engine.msrs.intercepts(index):
            return _RAISE
        value = (registers[_RDX] & 0xFFFFFFFF) << 32 | registers[_RAX] & 0xFFFFFFFF
        return _HANDLED if engine.msrs.write(index, value) else _NATIVE

    def _on_acknowledge(self, env: int) -> int:
        engine = self.attached.get(env)
        return native_delivery.NO_VECTOR if engine is None else engine.acknowledge()

    def claim_cell(self, cpu: int) -> int | None:
        """The cell of this CPU (access type, whether it is in use), or None if another live engine has the same one."""
        cell = (cpu >> 6) & (_CELLS - 1)
        if any(engine.cell == cell for engine in self.attached.values()):
            return None
        self.flag_cell(cell, vc.CELL_USED)
        return cell

    def flag_cell(self, cell: int, flags: int) -> None:
        """What the stubs do for the CPU of this cell; 0 is nothing."""
        struct.pack_into("<I", self._cells, 8 * cell + 4, flags)

    def set_table(self, cell: int, address: int) -> None:
        """Where the CPU of this cell has its page rights; 0 is that it has none."""
        struct.pack_into("<Q", self._cells, _TABLES + 8 * cell, address)

    def holds_code(self, gpa: int, size: int) -> bool:
        """Whether any page of the range was ever executed."""
        first, last = gpa >> 12, (gpa + size - 1) >> 12
        return self._fetched.find(b"\x01", first, last + 1) >= 0

    def forget_code(self) -> None:
        """All translations are gone: no page holds code now."""
        self._fetched.madvise(mmap.MADV_DONTNEED)


class _FaultRecord(ctypes.Structure):
    """A store that was refused, and whom to ask about it; its address is the hook's user data."""

    _fields_ = (("env", ctypes.c_uint64), ("gpa", ctypes.c_uint64), ("size", ctypes.c_uint32),
                ("_", ctypes.c_uint32), ("value", ctypes.c_uint64), ("decider", ctypes.c_uint64))  # fmt: skip


class EngineHooks:
    """One engine's use of the patches. ``attach`` makes it, ``detach`` must be called before the engine goes."""

    def __init__(self, patches: _Patches, engine: int, cpu: int) -> None:
        self._patches = patches
        self._engine = engine
        self._cpu = cpu
        self._env = cpu + _CPU_ENV
        self.fault = _FaultRecord(env=self._env)
        self.store_hook = patches.store_stub
        self.unmapped_hook = patches.unmapped_stub
        self._halted = ctypes.c_uint32.from_address(cpu + _CPU_HALTED)
        self._exception_index = ctypes.c_int32.from_address(cpu + _CPU_EXCEPTION_INDEX)
        self._old_exception = ctypes.c_int32.from_address(self._env + _ENV_OLD_EXCEPTION)
        self._request = ctypes.c_uint32.from_address(cpu + native_delivery.INTERRUPT_REQUEST)
        self.rip = ctypes.c_uint64.from_address(self._env + _ENV_RIP)
        """Of the next instruction, while the guest is stopped between two: in hooks on exceptions."""
        self._tsc_offset = ctypes.c_uint64.from_address(self._env + _ENV_TSC_OFFSET)
        self._started, self._started_ticks = monotonic_ns(), library.cpu_get_ticks_x86_64()
        self.delivery = native_delivery.DeliveryRecord(cpu=cpu)
        self._rights: mmap.mmap | None = None

    def raise_vc(self, *, dr7: bool) -> None:
        """From now on CPUID, IN, OUT, intercepted MSRs and, if so asked, MOV DR7 raise #VC."""
        flags = vc.CELL_USED | vc.CELL_VC | (vc.CELL_VC_DR7 if dr7 else 0)
        self._patches.flag_cell(self._patches.attached[self._env].cell, flags)

    def ask(self, decider: Any) -> int:
        """Let a ``StoreDecider``, kept by the caller, decide about refused stores; returns the hook's user data."""
        self.fault.decider = ctypes.cast(decider, ctypes.c_void_p).value
        return ctypes.addressof(self.fault)

    def check_pages(self) -> PageRights:
        """From now on a table says which pages the guest may touch; at first all."""
        self._rights = mmap.mmap(
            -1, page_rights.TABLE_BYTES + mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        address = _buffer_address(self._rights)
        self._patches.set_table(self._patches.attached[self._env].cell, address)
        return PageRights(self._rights, lambda: _tlb_flush(self._cpu))

    @property
    def halted(self) -> bool:
        """Whether the CPU executed HLT."""
        return bool(self._halted.value)

    @property
    def shut_down(self) -> bool:
        """Whether the CPU met a fault while it delivered a double fault."""
        return self._old_exception.value == native_delivery.DOUBLE_FAULT

    @property
    def env(self) -> int:
        """Address of the CPU's state."""
        return self._env

    def emit(self, *codes: Callable[[int, int], bytes]) -> list[int]:
        """Place native hooks, made from the functions that load a byte of code and that raise; returns where."""
        functions = _address("cpu_ldub_code_x86_64"), _address("raise_exception_err_ra_x86_64")
        return self._patches.emit_once(*(code(*functions) for code in codes))

    def hook_exceptions(self, on_refused_store: Any, on_invalid: Any) -> None:
        """Let the engine deliver exceptions. Two are told: stores undone under ``FAULT_VECTOR``, and instructions that
        the engine does not know; ``on_invalid`` is an ``InstructionDecider``."""
        self._kept = on_refused_store, on_invalid
        self.delivery.on_pseudo_exception = ctypes.cast(on_refused_store, ctypes.c_void_p).value
        self.delivery.on_invalid = ctypes.cast(on_invalid, ctypes.c_void_p).value
        record = ctypes.addressof(self.delivery)
        stubs = self._patches.interrupt_stub, self._patches.invalid_stub
        for kind, stub in zip(
            (unicorn_const.UC_HOOK_INTR, unicorn_const.UC_HOOK_INSN_INVALID), stubs, strict=True
        ):
            hook_add(self._engine, kind, stub, user_data=record)

    def answer_interrupts(self, acknowledge: Callable[[], int]) -> None:
        """Take the vector of an interrupt from ``acknowledge`` (NO_VECTOR for none) at the moment of its delivery."""
        self._patches.attached[self._env].acknowledge = acknowledge

    def request_interrupt(self) -> None:
        """Deliver an interrupt as soon as the guest takes one. On the CPU's thread."""
        self._request.value |= native_delivery.HARD_INTERRUPT

    @property
    def interrupt_requested(self) -> bool:
        """Whether the guest still has to take it."""
        return bool(self._request.value & native_delivery.HARD_INTERRUPT)

    def advance_tsc(self, nanoseconds: int) -> None:
        """Move the time-stamp counter forward, which else goes as the host's."""
        elapsed = monotonic_ns() - self._started
        ticks = library.cpu_get_ticks_x86_64() - self._started_ticks
        self._tsc_offset.value += nanoseconds * ticks // max(elapsed, 1)

    def reset_delivery(self) -> None:
        """As after RESET#: nothing is asked for, no exception was met."""
        self._request.value &= ~native_delivery.HARD_INTERRUPT
        self.forget_lookup()

    def forget_lookup(self) -> None:
        """Forget a fault that a lookup of ours left behind: the guest would take it for its own."""
        self._exception_index.value = self._old_exception.value = -1

    def holds_code(self, gpa: int, size: int) -> bool:
        """Whether translated code may come from this range of guest memory."""
        return self._patches.holds_code(gpa, size)

    def translations_flushed(self) -> None:
        """The engine dropped all of its translations: no page holds code now, and no TLB entry may say otherwise."""
        if len(self._patches.attached) == 1:
            self._patches.forget_code()
            _tlb_flush(self._cpu)

    def detach(self) -> None:
        """Stop using the patches; they stay in place for the next engine."""
        attached = self._patches.attached.pop(self._env, None)
        if attached is not None:
            self._patches.flag_cell(attached.cell, 0)
            self._patches.set_table(attached.cell, 0)


def _tlb_flush(cpu: int) -> None:
    library.tlb_flush_x86_64(ctypes.c_void_p(cpu))


def _buffer_address(buffer: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


_installed: list[_Patches] = []
_lock = threading.Lock()


def attach(engine: int, msrs: ModelSpecificRegisters) -> EngineHooks:
    """Hook an engine (its ``uc_engine`` address, already initialised). Raises UnsupportedError where that cannot be."""
    with _lock:
        if reason := unavailable():
            raise _cannot(reason)
        if not _installed:
            try:
                _installed.append(_Patches())
            except OSError as error:
                raise _cannot(f"the engine's code cannot be changed: {error}") from error
        patches = _installed[0]
        cpu = ctypes.c_uint64.from_address(engine + _ENGINE_CPU).value
        cell = patches.claim_cell(cpu)
        if cell is None:
            raise _cannot("another CPU of this process has the same cell")
        if not patches.attached:
            patches.forget_code()
        ctypes.c_uint8.from_address(engine + _ENGINE_NO_EXIT_REQUEST).value = 1
        hooks = EngineHooks(patches, engine, cpu)
        patches.attached[cpu + _CPU_ENV] = _Attached(msrs, cell, lambda: native_delivery.NO_VECTOR)
        return hooks


def _cannot(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"the modelled host cannot run a guest here: {reason}",
        "use --host kvm, or an x86-64 machine with unicorn 2.1.4 from its wheel",
    )
