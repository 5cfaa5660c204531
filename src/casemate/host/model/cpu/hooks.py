"""The hooks of the modelled CPU: a C library in place of some functions of its engine (Unicorn 2.1.4).

``native/hooks`` is the library; docs/decisions/0002-engine-hooks.md says what for and why that is sound. Where it is
missing, or the engine is another build, or the computer another kind, there is no modelled CPU.
"""

import ctypes
import mmap
import os
import threading
from collections.abc import Callable
from ctypes import c_int32, c_uint8, c_uint32, c_uint64, c_void_p
from errno import ENOMEM
from functools import cache
from time import monotonic_ns
from typing import Any, NamedTuple

from casemate import native
from casemate.address import GuestRange
from casemate.errors import HostError, UnsupportedError
from casemate.host.clock import NANOSECONDS
from casemate.host.hypervisor import FlashProgram
from casemate.host.model.cpu.debug_control import DebugControl
from casemate.host.model.cpu.msr import ModelSpecificRegisters
from casemate.host.model.cpu.page_rights import PageRights
from casemate.host.model.cpu.processor import ADDRESS_BITS, Processor
from casemate.host.model.cpu.records import (
    KNOWN_BLOCKS_BYTES,
    PAGES,
    RAMS,
    WALKED,
    CpuidAnswer,
    CpuRecord,
    GroupRecord,
    InterruptAcknowledger,
    InterruptPoll,
    MsrAnswer,
    TakePrograms,
)
from casemate.host.model.cpu.unicorn_api import (
    emu_stop,
    hook_add,
    host_ticks,
    library,
    unicorn_const,
    x86_const,
)

REFUSED_WRITE, SHARED_ACCESS, UNDONE_PORT = 0x2600, 0x2601, 0x2603
"""Pseudo exceptions: a write that was undone, an access of an SNP guest that needs a page shared, IN or OUT undone,
an instruction with a breakpoint of a debugger's, and MOV DR that it forbids."""
NO_VECTOR = -1
"""What a controller answers that has thought better of it."""
UNDEFINED, EXECUTED = 0, 1
"""What became of an instruction that the engine does not know; everything else is the exit code of its #VC."""
_DOUBLE_FAULT, _HARD_INTERRUPT, _NMI, _MONITOR = 8, 1 << 1, 1 << 9, 1 << 3
_ENGINE_CPU, _ENGINE_NO_EXIT_REQUEST = 0x1B8, 0x7F2
_INTERRUPT_REQUEST = 0x1C
_CPU_HALTED, _CPU_EXCEPTION_INDEX, _CPU_ENV = 0x8198, 0x81A0, 0x8A50
_ENV_OLD_EXCEPTION, _ENV_RIP, _ENV_TSC_OFFSET, _ENV_TPR, _ENV_FEATURES_1_ECX = (
    0x1578,
    0x80,
    0x1588,
    0x15B4,
    0x1608,
)
_ENV_EFLAGS, _ENV_CS, _LAPIC_TPR = 0x88, 0xD0, 0x80
"""Of version 2.1.4, which the library makes sure of; ``native/hooks/engine.h`` says how to find such numbers."""
EFLAGS_IF = 1 << 9
_RAISES_VC, _RAISES_VC_DR7, _SERVES_GHCB = 1, 2, 4
_SERVED = ("0x7b", "0x72", "0x7c", "0x80000001", "0x80000002", "msr 0x004")
ABORTED = unicorn_const.UC_ERR_RESOURCE
"""What ``EngineHooks.run`` returns when the engine gave up; it can be used for nothing any more."""


class Callbacks(NamedTuple):
    """What the hooks ask Python, as ctypes functions."""

    read_port: Any
    write_port: Any
    read_mmio: Any
    write_mmio: Any
    on_write: Any


_lock = threading.Lock()


def _hooks() -> Any:
    """The library, in place in the engine. Raises UnsupportedError where that cannot be."""
    with _lock:
        return _install()


@cache
def _install() -> Any:
    if (machine := os.uname().machine) != "x86_64":
        raise _cannot(f"it needs an x86-64 computer, this is {machine}")
    try:
        hooks = ctypes.CDLL(str(native.HOOKS))
    except OSError as error:
        raise _cannot(f"its machine code was not built ({error})") from None
    hooks.hooks_install.restype = hooks.hooks_sources.restype = ctypes.c_char_p
    if problem := hooks.hooks_install(c_void_p(_engine_base())):
        raise _cannot(problem.decode())
    hooks.hooks_set_engine(library.uc_emu_start, library.uc_emu_stop)
    return hooks


def _cannot(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"the modelled host cannot run guests here: {reason}",
        "use --host kvm, or install casemate's and Unicorn's wheels for Linux on x86-64",
    )


def _engine_base() -> int:
    """Where the engine is loaded: what dladdr says of one of its functions."""

    class _Info(ctypes.Structure):
        _fields_ = (("name", c_void_p), ("base", c_void_p), ("symbol", c_void_p), ("address", c_void_p))

    info = _Info()
    ctypes.CDLL(None).dladdr(ctypes.cast(library.uc_open, c_void_p), ctypes.byref(info))
    return info.base or 0


def sources() -> str:
    """The hash of the sources that the library was compiled from. Raises UnsupportedError where there is none."""
    return str(_hooks().hooks_sources().decode())


def sizes() -> tuple[int, ...]:
    """Bytes of the records of a CPU, its registers, a group and a ticker, as the library has them.

    Raises UnsupportedError.
    """
    functions = ("hooks_cpu_size", "hooks_msrs_size", "hooks_group_size", "hooks_ticker_size")
    return tuple(int(ctypes.CFUNCTYPE(c_uint64)(hook_address(name))()) for name in functions)


def create_cpu(engine: int) -> None:
    """Have an engine make its CPU, which it does when it is first used.

    Raises HostError where there is not enough memory; the engine can then not even be closed.
    """
    if not _hooks().hooks_create_cpu(library.uc_reg_read, c_void_p(engine), x86_const.UC_X86_REG_EFLAGS):
        raise HostError(
            "mmap",
            ENOMEM,
            "the modelled CPU needs 1 GiB of address space for its translations",
            "raise the limit of address space (ulimit -v)",
        )


def env_of(engine: int) -> int:
    """Address of the ``CPUX86State`` of an engine that has its CPU."""
    return int(c_uint64.from_address(engine + _ENGINE_CPU).value) + _CPU_ENV


def hook_address(name: str) -> int:
    """Address of one of the library's functions, to register with the engine. Raises UnsupportedError."""
    return ctypes.cast(getattr(_hooks(), name), c_void_p).value or 0


class EngineHooks:
    """One engine's use of the hooks. ``detach`` must be called before the engine goes.

    ``engine`` is the address of its ``uc_engine``, initialised. Raises UnsupportedError where it cannot be hooked.
    """

    def __init__(self, engine: int, msrs: ModelSpecificRegisters, processor: Processor) -> None:
        self._hooks = _hooks()
        self._engine = engine
        self.is_executing = False
        """Whether ``run`` has not returned."""
        cpu = c_uint64.from_address(engine + _ENGINE_CPU).value
        env = cpu + _CPU_ENV
        self._cpu = cpu
        self._code_pages = mmap.mmap(-1, PAGES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._shares_marks = False
        self._blocks = mmap.mmap(-1, KNOWN_BLOCKS_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._rights: mmap.mmap | None = None
        self._kept: list[Any] = [msrs]
        self._error: BaseException | None = None
        self.record = CpuRecord(cpu=cpu, env=env)
        self.record.code_pages = _buffer_address(self._code_pages)
        self.record.blocks = _buffer_address(self._blocks)
        self.record.msrs = msrs.address
        self.record.cr4_reserved, self.record.efer_reserved = processor.cr4_reserved, processor.efer_reserved
        self.record.address_reserved = (1 << 64) - (1 << processor.address_bits)
        self.record.wide_bits = (1 << processor.address_bits) - (1 << ADDRESS_BITS)
        self.record.on_acknowledge = InterruptAcknowledger(lambda: NO_VECTOR)
        self.user_data = ctypes.addressof(self.record)
        """What hooks are registered with the engine with."""
        self.debugger = DebugControl(self.record, self._watch_accesses)
        self._halted = c_uint32.from_address(cpu + _CPU_HALTED)
        self._exception_index = c_int32.from_address(cpu + _CPU_EXCEPTION_INDEX)
        self._old_exception = c_int32.from_address(env + _ENV_OLD_EXCEPTION)
        self._request = c_uint32.from_address(cpu + _INTERRUPT_REQUEST)
        self.rip = c_uint64.from_address(env + _ENV_RIP)
        """Of the next instruction, while the guest is stopped between two: in hooks on exceptions."""
        self._code_selector = c_uint32.from_address(env + _ENV_CS)
        self._code_base = c_uint64.from_address(env + _ENV_CS + 8)
        self._own_priority = c_uint8.from_address(env + _ENV_TPR)
        self._tsc_offset = c_uint64.from_address(env + _ENV_TSC_OFFSET)
        self._started, self._started_ticks = monotonic_ns(), host_ticks()
        with _lock:
            # Leave translated code at the start of blocks only: else uc_emu_stop would have an instruction run twice.
            c_uint8.from_address(engine + _ENGINE_NO_EXIT_REQUEST).value = 1
            if not self._hooks.hooks_attach(ctypes.byref(self.record)):
                raise _cannot("the engine keeps the functions of its CPU elsewhere")

    def join(self, first: "EngineHooks", group: GroupRecord) -> None:
        """Be one of the CPUs of a guest, of which ``first`` is another, or this one. Before it executes anything."""
        self._code_pages, self._shares_marks = first._code_pages, True
        self.record.code_pages = first.record.code_pages
        self._kept.append(group)
        self.record.group = ctypes.addressof(group)
        self.tsc_offset = first.tsc_offset

    def set_code_segment(self, selector: int, base: int) -> None:
        """Of real mode, while the CPU stands still."""
        self._code_selector.value, self._code_base.value = selector, base

    def raise_vc(self, *, dr7: bool) -> None:
        """From now on CPUID, IN, OUT, intercepted MSRs and, if so asked, MOV DR7 raise #VC."""
        self.record.flags |= _RAISES_VC | (_RAISES_VC_DR7 if dr7 else 0)
        # Its CPUID hides MONITOR and MWAIT, as KVM does; but the processor knows them, and they raise #VC.
        c_uint64.from_address(self.record.env + _ENV_FEATURES_1_ECX).value |= _MONITOR

    def answer_cpuid(self, answer: Callable[[int, int], tuple[int, int, int, int]]) -> None:
        """What the guest is told: ``answer`` of leaf and index, asked once for each."""

        def on_cpuid(leaf: int, index: int, registers: Any) -> None:
            try:
                for number, value in enumerate(answer(leaf, index)):
                    registers[number] = value
            except BaseException as error:
                self.fail(error)

        self.record.on_cpuid = CpuidAnswer(on_cpuid)

    def answer_msrs(self, answer: Callable[[int, int | None], int | None]) -> None:
        """Ask ``answer`` for ASKED registers: number, and the value that the guest writes. None is #GP."""

        def on_msr(index: int, is_write: int, value: Any) -> int:
            found = answer(index, value[0] if is_write else None)
            if found is None:
                return 1
            value[0] = found
            return 0

        self.record.on_msr = MsrAnswer(on_msr)

    @property
    def tsc_offset(self) -> int:
        """How far the guest's time-stamp counter is ahead of the host's, modulo 2**64."""
        return int(self._tsc_offset.value)

    @tsc_offset.setter
    def tsc_offset(self, value: int) -> None:
        self._tsc_offset.value = value

    def forget_cpuid(self) -> None:
        """Ask for all leaves again."""
        ctypes.memset(ctypes.byref(self.record, CpuRecord.leaves.offset), 0, CpuRecord.leaves.size)

    def divert(self, callbacks: Callbacks) -> Callbacks:
        """Ask others about accesses from now on, by the addresses of C functions; returns those of before."""
        before = []
        for name, address in callbacks._asdict().items():
            field = getattr(CpuRecord, name)
            place = c_uint64.from_buffer(self.record, field.offset)
            before.append(place.value)
            if address is not None:
                place.value = address
        return Callbacks(*before)

    @property
    def undo_port_at(self) -> int:
        """Address of a word; who answers IN or OUT sets it to have the guest stand before the instruction again."""
        return self.user_data + CpuRecord.undo_port.offset

    @property
    def eflags_at(self) -> int:
        """Address of the flags; IF is always up to date."""
        return int(self.record.env) + _ENV_EFLAGS

    @property
    def takes_interrupts(self) -> bool:
        """RFLAGS.IF."""
        return bool(c_uint64.from_address(self.eflags_at).value & EFLAGS_IF)

    @property
    def exchange_at(self) -> int:
        """Address of the function by which a thread goes on with a CPU that ran in another one."""
        return hook_address("hooks_exchange")

    def serve_ghcb(self) -> None:
        """Serve the plain requests of a SEV-ES or SNP guest without Python, but for the bus."""
        self.record.flags |= _SERVES_GHCB

    def call_back(self, callbacks: Callbacks) -> None:
        """Whom to ask about accesses that leave the CPU."""
        for name, callback in callbacks._asdict().items():
            setattr(self.record, name, callback)

    def hook_exceptions(self, on_pseudo: Any, on_instruction: Any) -> None:
        """Let the engine deliver exceptions.

        A ``PseudoException`` and an ``InstructionDecider`` are told of pseudo exceptions, and of instructions that the
        model knows and the engine does not.
        """
        self.record.on_pseudo, self.record.on_instruction = on_pseudo, on_instruction
        for kind, name in (
            (unicorn_const.UC_HOOK_INTR, "hook_interrupt"),
            (unicorn_const.UC_HOOK_INSN_INVALID, "hook_invalid"),
        ):
            hook_add(self._engine, kind, hook_address(name), user_data=self.user_data)

    def answer_interrupts(self, acknowledge: Callable[[], int], poll: Callable[[], int]) -> None:
        """Take the vector of an interrupt from ``acknowledge`` (NO_VECTOR for none) at the moment of its delivery.

        When the CPU is kicked ``poll`` raises what is due, and says whether an interrupt waits.
        """
        self.record.on_acknowledge = InterruptAcknowledger(acknowledge)
        self.record.on_kick = InterruptPoll(poll)

    def hear_spins(self, on_spin: Callable[[], bool]) -> None:
        """Have ``on_spin`` let time pass at every 16th PAUSE of a CPU that is alone; true if an interrupt is due."""
        self.record.on_spin = InterruptPoll(on_spin)

    def use_lapic(self, address: int) -> None:
        """The CPU has the local APIC whose record is at ``address``."""
        self.record.lapic = address
        self._task_priority = c_uint32.from_address(address + _LAPIC_TPR)

    def check_pages(self) -> PageRights:
        """From now on a table says which pages the guest may touch; at first all."""
        self._rights = mmap.mmap(-1, PAGES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.record.rights = _buffer_address(self._rights)
        rights = PageRights(self._rights)
        rights.emptied_by.append(lambda: _tlb_flush(self._cpu))
        return rights

    def share_pages(self, first: "EngineHooks", rights: PageRights) -> None:
        """The table is that of another CPU of the guest."""
        self._rights, self.record.rights = first._rights, first.record.rights
        rights.emptied_by.append(lambda: _tlb_flush(self._cpu))

    @property
    def refused_gpa(self) -> int:
        """Address of the page that the guest was refused last."""
        return int(self.record.refused_gpa)

    def memory_changed(self, ram: dict[int, tuple[int, int]]) -> None:
        """What is mapped now: size and host address by guest-physical address."""
        record = self.record
        record.ghcb = 0
        record.walked_count = WALKED + 1
        record.stamp, record.flushed = (
            record.stamp + 1 & 0xFFFFFFFF,
            0xFFFFFFFF,
        )  # blocks are known by their pages
        largest = sorted(((size, start, host) for start, (size, host) in ram.items()), reverse=True)[:RAMS]
        words = [word for size, start, host in largest for word in (start, size, host)]
        record.ram_count = 0
        ctypes.memmove(record.ram, (c_uint64 * len(words))(*words), 8 * len(words))
        record.ram_count = len(largest)

    def change_memory(self, change: Any, gpa: int, size: int, access: int | None = None) -> int:
        """Have the engine's function change what is mapped: its error number. Without ``access`` it is taken away."""
        where = c_uint64(gpa), c_uint64(size)
        return int(
            self._hooks.hooks_change_memory(self.user_pointer, change, *where, access or 0, access is None)
        )

    def take_programs(self, where: GuestRange, hand_over: Callable[[int, int], None]) -> None:
        """``hand_over`` gets how many programs of the unit at ``where`` were noted, and whether a command waits."""
        flash = self.record.flash
        flash.gpa, flash.size, flash.take = where.start, where.size, TakePrograms(hand_over)

    def note_programs(self) -> None:
        """The unit just made a program: note further ones, and answer "ready", until something else happens."""
        self.record.flash.armed = 1

    def programs(self, count: int) -> list[FlashProgram]:
        """The programs that were noted."""
        now, seconds = host_ticks(), self.nanoseconds_per_tick() / NANOSECONDS
        return [
            FlashProgram(row.offset, row.size, row.value, (now - row.ticks) * seconds)
            for row in self.record.flash.log[:count]
        ]

    def pending_command(self) -> tuple[int, int, int]:
        """Offset, size and value of the command that waits."""
        flash = self.record.flash
        return flash.pending_offset, flash.pending_size, flash.pending_value

    def served(self) -> dict[str, int]:
        """VMGEXITs that needed no Python, by exit code."""
        return {name: count for name, count in zip(_SERVED, self.record.served, strict=False) if count}

    def vc_counts(self) -> dict[int, int]:
        """#VCs that were raised, by exit code."""
        return {code: count for code, count in enumerate(self.record.vc) if count}

    def _watch_accesses(self) -> None:
        kind = unicorn_const.UC_HOOK_MEM_READ | unicorn_const.UC_HOOK_MEM_WRITE
        hook_add(self._engine, kind, hook_address("hook_access"), user_data=self.user_data)

    @property
    def halted(self) -> bool:
        """Whether the CPU executed HLT."""
        return bool(self._halted.value)

    @property
    def shut_down(self) -> bool:
        """Whether the CPU met a fault while it delivered a double fault."""
        return self._old_exception.value == _DOUBLE_FAULT

    def request_interrupt(self) -> None:
        """Deliver an interrupt as soon as the guest takes one. On the CPU's thread."""
        self._request.value |= _HARD_INTERRUPT

    @property
    def interrupt_requested(self) -> bool:
        """Whether the guest still has to take it."""
        return bool(self._request.value & _HARD_INTERRUPT)

    @property
    def cr8(self) -> int:
        """The task priority's class, which is the local APIC's where there is one."""
        return self._task_priority.value >> 4 if self.record.lapic else self._own_priority.value

    @cr8.setter
    def cr8(self, value: int) -> None:
        if self.record.lapic:
            self._task_priority.value = (value & 15) << 4
        else:
            self._own_priority.value = value & 15

    def kick(self) -> None:
        """Have the CPU look for interrupts soon; from any thread, and it may be lost."""
        self._hooks.hooks_kick(self.user_pointer)

    def request_nmi(self) -> None:
        """Deliver an NMI as soon as none is in progress. On the CPU's thread, or while it does not run."""
        self._request.value |= _NMI

    @property
    def nmi_requested(self) -> bool:
        """Whether an NMI waits."""
        return bool(self._request.value & _NMI)

    def read_tsc(self) -> int:
        """What the guest's RDTSC says now."""
        ticks = host_ticks()
        return ticks + self._tsc_offset.value & (1 << 64) - 1

    def nanoseconds_per_tick(self) -> float:
        """By the ticks since this was made."""
        ticks = host_ticks() - self._started_ticks
        return (monotonic_ns() - self._started) / max(ticks, 1)

    def advance_tsc(self, nanoseconds: int) -> None:
        """Move the time-stamp counter forward, which else goes as the host's."""
        elapsed = monotonic_ns() - self._started
        ticks = host_ticks() - self._started_ticks
        self._tsc_offset.value += nanoseconds * ticks // max(elapsed, 1)

    def reset_delivery(self) -> None:
        """As after RESET#: nothing is asked for, no exception was met."""
        self._request.value &= ~(_HARD_INTERRUPT | _NMI)
        self.forget_lookup()

    def forget_lookup(self) -> None:
        """Forget a fault that a lookup of ours left behind: the guest would take it for its own."""
        self._exception_index.value = self._old_exception.value = -1

    def holds_code(self, gpa: int, size: int) -> bool:
        """Whether translated code may come from this range of guest memory."""
        first, last = gpa >> 12, (gpa + size - 1) >> 12
        return self._code_pages.find(b"\x01", first, last + 1) >= 0

    def code_marks(self) -> tuple[int, int]:
        """Addresses of a byte for each page, whether code came from it, and of a count of pages that it newly did."""
        return int(self.record.code_pages), self.user_data + CpuRecord.fetched.offset

    def tell_before_stores(self, function: int) -> None:
        """Have the C function at this address called with the host's address of a page with code that is stored to."""
        self.record.before_store = function

    def find_place(self) -> None:
        """Make RIP and RFLAGS those of the IN or OUT that is being answered, if there is one."""
        self._hooks.hooks_find_place(self.user_pointer)

    def share_memory(self) -> None:
        """Other threads write to the guest's memory: its locked instructions are atomic to them. Before it runs."""
        self.record.shares_memory = 1

    def _forget_code_pages(self) -> None:
        try:
            self._code_pages.madvise(mmap.MADV_DONTNEED)
        except OSError:  # the process locks its memory (mlockall(2))
            ctypes.memset(_buffer_address(self._code_pages), 0, PAGES)

    def translations_flushed(self) -> None:
        """The engine dropped all of its translations: no page holds code now, and no TLB entry may say otherwise."""
        if not self._shares_marks:  # another CPU's translations are still there
            self._forget_code_pages()
        ctypes.memset(ctypes.byref(self.record, CpuRecord.last.offset), 0, CpuRecord.last.size)
        _tlb_flush(self._cpu)

    def run(self, rip: int) -> int:
        """Execute from ``rip``; returns the engine's error number, 0 for none."""
        self.is_executing = True
        error = int(self._hooks.hooks_run(self.user_pointer, c_void_p(self._engine), c_uint64(rip)))
        self.is_executing = False
        return ABORTED if self.record.aborted else error

    @property
    def user_pointer(self) -> c_void_p:
        """``user_data`` as an argument."""
        return c_void_p(self.user_data)

    def fail(self, error: BaseException) -> None:
        """A callback failed: stop the guest. ctypes alone would print the exception, and the guest would go on."""
        if self._error is None:
            self._error = error
        emu_stop(self._engine)

    def take_error(self) -> None:
        """Raise what a callback raised since the last time, if any did."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def detach(self) -> None:
        """Stop using the hooks; they stay in place for the next engine."""
        with _lock:
            self._hooks.hooks_detach(self.user_pointer)


def _tlb_flush(cpu: int) -> None:
    library.tlb_flush_x86_64(c_void_p(cpu))


def _buffer_address(buffer: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
