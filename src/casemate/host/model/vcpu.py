"""A modelled vCPU: runs the engine, delivers interrupts, waits in HLT (Linux api.rst, KVM_RUN)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic_ns, sleep
from typing import NamedTuple

from unicorn import unicorn_const

from casemate.abi.sev.ghcb import ExitCode
from casemate.address import Gpa
from casemate.host.clock import NANOSECONDS, GuestClock
from casemate.host.exits import Hlt, InternalFault, Interrupted, SevTermination, Shutdown, VmExit
from casemate.host.hypervisor import InterruptController
from casemate.host.model import hypercalls
from casemate.host.model.cpu import delivery
from casemate.host.model.cpu import engine as registers
from casemate.host.model.cpu.cache_control import CacheControl
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.cpu.native import FastPath
from casemate.host.model.cpu.native_delivery import EXECUTED, NO_VECTOR, UNDEFINED, InstructionDecider
from casemate.host.model.cpu.page_rights import SHARED_VECTOR
from casemate.host.model.cpu.sites import InstructionSites
from casemate.host.model.cpu.unicorn_api import InterruptHook, InvalidInstructionHook
from casemate.host.model.cpu.virtual_tlb import VirtualTlb
from casemate.host.model.ghcb import GhcbServer
from casemate.host.model.hypercalls import VMMCALL
from casemate.host.model.page_instructions import PVALIDATE, RMPADJUST, PageInstructions
from casemate.host.model.physical_memory import PhysicalMemory
from casemate.host.model.traps import Traps

_TICK_SECONDS = 0.002
_CHECK_NS = 500_000
_RFLAGS_IF = 1 << 9
_HLT = b"\xf4"
_STI = b"\xfb"
_VMGEXIT = b"\xf3\x0f\x01\xd9"


class Secrecy(NamedTuple):
    """What of a guest its host cannot see, and whether it may run yet."""

    memory: bool
    registers: bool
    may_run: Callable[[], bool]


class ModelVcpu:
    """One modelled CPU; see ``casemate.host.hypervisor.Vcpu`` for the protocol."""

    def __init__(
        self,
        engine: Engine,
        memory: PhysicalMemory,
        traps: Traps,
        interrupts: InterruptController | None,
        clock: GuestClock,
        secrecy: Secrecy,
        ghcb: GhcbServer | None = None,
        page_instructions: PageInstructions | None = None,
    ) -> None:
        self.store_is_late = False
        self._engine = engine
        self._memory = memory
        self._traps = traps
        self._interrupts = interrupts
        self._clock = clock
        self._secrecy = secrecy
        self._ghcb = ghcb
        self._page_instructions = page_instructions
        self._exit: VmExit | None = None
        self._stop_wanted = False
        self._interrupted_by_us = False
        self._flush_wanted = False
        self._sti_seen_at = -1
        self._interrupt_waits = False
        self._next_check = 0
        self._awake = threading.Condition()
        self._closed = False
        self._executing = threading.Event()
        self._tlb = None if engine.fast else VirtualTlb(engine, memory)
        self._sites = (
            None if self._tlb is None else InstructionSites(engine, memory, self._tlb, self._stop_here)
        )
        self._cache_control: CacheControl | None = None
        if engine.fast:
            self._use_native_delivery(engine.fast)
        else:
            engine.hook(unicorn_const.UC_HOOK_INTR, InterruptHook(self._on_exception))
            engine.hook(
                unicorn_const.UC_HOOK_INSN_INVALID, InvalidInstructionHook(self._on_invalid_instruction)
            )
        self._ticker = threading.Thread(target=self._tick, name="casemate-ticker", daemon=True)
        self._ticker.start()

    def _use_native_delivery(self, fast: FastPath) -> None:
        fast.hook_exceptions(
            InterruptHook(self._on_refused_access), InstructionDecider(self._on_unknown_instruction)
        )
        fast.answer_interrupts(self._acknowledge)
        self._cache_control = CacheControl(self._engine) if self._engine.raises_vc else None
        self._clock.on_skip = fast.advance_tsc

    def run(self) -> VmExit:
        """Execute until something happens that the bus cannot handle."""
        if not self._secrecy.may_run():
            return InternalFault("KVM_RUN refused (modelled): the launch of this guest is not finished")
        self._memory.map_holes()
        while True:
            if self._stop_wanted:
                self._stop_wanted = False
                return Interrupted()
            if self._interrupts is not None and self._interrupts.pending():
                self._deliver_interrupt()
            if self._exit is None:
                error = self._finish_store(self._execute())
                self._traps.take_error()
                self._after_execution(error)
            if self._exit is not None:
                vm_exit, self._exit = self._exit, None
                return vm_exit

    def vc_counts(self) -> Counter[int]:
        """#VCs that were raised, by exit code."""
        fast = self._engine.fast
        return Counter(fast.delivery.vc_counts() if fast else {})

    def stop(self) -> None:
        """Make ``run`` return soon; from any thread."""
        self._stop_wanted = True
        self.wake()
        self._engine.stop()

    def wake(self) -> None:
        """End a wait in HLT early; from any thread."""
        with self._awake:
            self._awake.notify()

    def reset(self) -> None:
        """The x86 reset state; translated code is forgotten."""
        self._engine.flush_translations()
        self._engine.reset()
        if self._tlb is not None:
            self._tlb.begin()

    def rip(self) -> int | None:
        """The instruction pointer, or None behind a seal."""
        return None if self._secrecy.registers else self._engine.read(registers.RIP)

    def set_rip(self, rip: int) -> None:
        """Go on elsewhere."""
        self._engine.write(registers.RIP, rip)

    def set_msr(self, index: int, value: int) -> None:
        """Set one model-specific register."""
        self._engine.set_msr(index, value)

    def storing_instruction(self, gpa: int, size: int) -> int | None:
        """The engine calls out with the pointer still on the instruction."""
        return self.rip()

    def code_at_rip(self, rip: int | None = None) -> tuple[bytes, int] | None:
        """The bytes of code and their width in bits; None where they are encrypted."""
        if self._secrecy.memory:
            return None
        offset = 0 if rip is None else rip - self._engine.read(registers.RIP)
        code = self._engine.code_at(self._engine.instruction_address() + offset)
        return None if code is None else (code, self._engine.code_bits())

    def memory_written(self, gpa: Gpa, size: int) -> None:
        """Translations of this range are stale: drop them all before the next block runs."""
        holder = self._engine.fast or self._tlb
        if holder is not None and holder.holds_code(gpa, size):
            self._flush_wanted = True
            self._request_stop()

    def close(self) -> None:
        """End the ticker."""
        self._closed = True
        self._executing.set()
        self._ticker.join()

    def _execute(self) -> int:
        self._interrupted_by_us = False
        self._executing.set()
        error = self._engine.start(self._engine.read(registers.RIP))
        self._executing.clear()
        if error == unicorn_const.UC_ERR_EXCEPTION and self._tlb is not None and self._tlb.in_use:
            self._tlb.give_up()
            self._interrupted_by_us = True
            return 0
        return error

    def _finish_store(self, error: int) -> int:
        """By the public API the engine stops on an instruction that it undid, and calls that an error."""
        if not self._traps.is_unfinished:
            return error
        self._interrupted_by_us = True
        if not self._traps.finish():
            self._deliver(delivery.deliver_exception, delivery.INVALID_OPCODE)
        return 0

    def _after_execution(self, error: int) -> None:
        if self._flush_wanted:
            self._flush_wanted = False
            self._engine.flush_translations()
        for sites in (self._sites, self._cache_control):
            if sites is not None and sites.install_pending():
                self._interrupted_by_us = True
        if self._traps.fault is not None:
            self._exit, self._traps.fault = self._traps.fault, None
        elif self._exit is not None:
            return
        elif self._engine.fast and self._engine.fast.shut_down:
            self._exit = Shutdown(self.rip())
        elif error:
            self._exit = InternalFault(f"the CPU model stopped: {self._engine.error_text(error)}", self.rip())
        elif self._is_halted():
            self._exit = self._halt()

    def _is_halted(self) -> bool:
        if self._engine.fast:
            return self._engine.fast.halted
        # The public API does not tell why the engine returned; if nobody asked it to stop, HLT did.
        return not self._interrupted_by_us and not self._stop_wanted and self._code_before_rip() == _HLT

    def _halt(self) -> VmExit | None:
        interrupts = self._interrupts
        if interrupts is None or not self._engine.read(registers.RFLAGS) & _RFLAGS_IF:
            return Hlt(interrupts_enabled=False)
        while not interrupts.pending() and not self._stop_wanted:
            deadline = interrupts.deadline()
            wait = None if deadline is None else self._clock.idle_until(deadline) / NANOSECONDS
            if wait != 0:
                with self._awake:
                    self._awake.wait(0.1 if wait is None else min(wait, 0.1))
        return None

    def _deliver_interrupt(self) -> None:
        assert self._interrupts is not None
        if self._engine.fast:
            self._engine.fast.request_interrupt()
            return
        rip, rflags = self._engine.read_many((registers.RIP, registers.RFLAGS))
        # STI holds interrupts back for one instruction.
        behind_sti = rip != self._sti_seen_at and self._code_before_rip() == _STI
        self._sti_seen_at = rip if behind_sti else -1
        self._interrupt_waits = behind_sti or not rflags & _RFLAGS_IF
        if not self._interrupt_waits:
            self._deliver(delivery.deliver, self._interrupts.acknowledge())

    def _acknowledge(self) -> int:
        try:
            interrupts = self._interrupts
            return interrupts.acknowledge() if interrupts is not None and interrupts.pending() else NO_VECTOR
        except BaseException as error:
            self._fail(error)
            return NO_VECTOR

    def _deliver(self, deliver: Callable[[Engine, int], None], vector: int) -> None:
        try:
            try:
                deliver(self._engine, vector)
            except delivery.CannotDeliverError:
                delivery.deliver(self._engine, delivery.DOUBLE_FAULT, 0)
        except delivery.CannotDeliverError:
            self._exit = Shutdown(self.rip())
        except delivery.NotModelledError as reason:
            self._exit = InternalFault(f"not modelled: {reason}", self.rip())

    def _code_before_rip(self) -> bytes | None:
        return self._engine.read_virtual(self._engine.instruction_address() - 1, 1)

    def _on_refused_access(self, _uc: int, vector: int, _user: int | None) -> None:
        assert self._engine.fast is not None
        if vector == SHARED_VECTOR:
            self._on_shared_access()
        else:
            self._traps.finish()

    def _on_shared_access(self) -> None:
        try:
            assert self._page_instructions is not None
            self._page_instructions.states.share_touched()
        except BaseException as error:
            self._fail(error)

    def _on_exception(self, _uc: int, vector: int, _user: int | None) -> None:
        try:
            self._deliver(delivery.deliver_exception, vector)
            if self._exit is not None:
                self._request_stop()
        except BaseException as error:
            self._fail(error)

    def _on_invalid_instruction(self, _uc: int, _user: int | None) -> bool:
        if self._engine.code_here(len(VMMCALL)) == VMMCALL:
            self._hypercall()
            self._engine.write(registers.RIP, self._engine.read(registers.RIP) + len(VMMCALL))
        else:
            self._on_exception(0, delivery.INVALID_OPCODE, None)
        return True

    def _on_unknown_instruction(self) -> int:
        try:
            assert self._engine.fast is not None
            return self._execute_for_guest(self._engine.fast)
        except BaseException as error:
            self._fail(error)
            return EXECUTED

    def _execute_for_guest(self, fast: FastPath) -> int:
        """VMGEXIT, VMMCALL, and an SNP guest's instructions on its pages."""
        # These come by ten thousands, in flat segments; only others are worth a look at where the segment begins.
        code, text = self._engine.read_virtual(fast.rip.value, len(_VMGEXIT)) or b"", None
        if code not in (_VMGEXIT, PVALIDATE, RMPADJUST):
            code = self._engine.code_here(len(_VMGEXIT))
        if code.startswith(VMMCALL):
            if self._secrecy.registers:
                return ExitCode.VMMCALL
            code = VMMCALL
            self._hypercall()
        elif code == _VMGEXIT and self._ghcb is not None:
            ended = self._ghcb.serve()
            text = None if ended is None else ended.text
        elif code in (PVALIDATE, RMPADJUST) and self._page_instructions is not None:
            if self._engine.privilege():
                return UNDEFINED
            text = self._page_instructions.execute(code)
        else:
            return UNDEFINED
        fast.rip.value += len(code)
        if text is not None:
            self._end(text)
        return EXECUTED

    def _hypercall(self) -> None:
        engine, mask = self._engine, (1 << max(32, self._engine.code_bits())) - 1
        result = hypercalls.answer(engine.read(registers.RAX) & mask, engine.privilege())
        engine.write(registers.RAX, result & mask)

    def _end(self, text: str) -> None:
        self._exit = SevTermination(text)
        self._request_stop()

    def _fail(self, error: BaseException) -> None:
        self._traps.error = error
        self._request_stop()

    def _timer_expired(self) -> bool:
        if self._interrupts is None:
            return False
        deadline = self._interrupts.deadline()
        return deadline is not None and self._clock.now() >= deadline

    def _stop_here(self) -> bool:
        """Whether to stop at a site for an interrupt; one that the guest masks would stop it there for ever."""
        now = monotonic_ns()
        if now < self._next_check:
            return False
        self._next_check = now + _CHECK_NS
        due = self._interrupt_waits or self._timer_expired()
        stop = due and bool(self._engine.read(registers.RFLAGS) & _RFLAGS_IF)
        self._interrupted_by_us |= stop
        return stop

    def _request_stop(self) -> None:
        self._interrupted_by_us = True
        self._engine.stop()

    def _tick(self) -> None:
        while not self._closed:
            self._executing.wait()
            sleep(_TICK_SECONDS)
            # Without the fast path a stop from here would run an instruction twice: only good for the end.
            fast = self._engine.fast
            if self._stop_wanted or (fast and not fast.interrupt_requested and self._timer_expired()):
                self._request_stop()
