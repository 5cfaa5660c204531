"""A modelled vCPU: runs the engine, delivers interrupts, waits in HLT (Linux api.rst, KVM_RUN)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from casemate.abi.sev.ghcb import ExitCode
from casemate.abi.x86 import msr
from casemate.address import Gpa
from casemate.host.clock import NANOSECONDS, GuestClock
from casemate.host.exits import (
    DebugEvent,
    Hlt,
    Interrupted,
    KvmInternalError,
    SevTermination,
    Shutdown,
    VmExit,
)
from casemate.host.hypervisor import InterruptController, LocalApic
from casemate.host.model import hypercalls
from casemate.host.model.cpu import engine as registers
from casemate.host.model.cpu.debug_control import AT_BREAKPOINT, AT_DEBUG_REGISTER, VECTOR_DB
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.cpu.hooks import (
    ABORTED,
    EXECUTED,
    NO_VECTOR,
    REFUSED_WRITE,
    SHARED_ACCESS,
    UNDEFINED,
    EngineHooks,
    InstructionDecider,
    PseudoException,
)
from casemate.host.model.hypercalls import VMCALL, VMMCALL
from casemate.host.model.intercepts import AccessIntercepts
from casemate.host.model.memory import PhysicalMemory
from casemate.host.model.run_control import RunControl, ThreadControl
from casemate.host.model.sev.ghcb import GhcbServer
from casemate.host.model.snp.instructions import PVALIDATE, RMPADJUST, PageInstructions

_LOOK_SECONDS = 0.002
"""How often somebody looks whether what was asked for was heard."""
_RFLAGS_IF = 1 << 9
_VMGEXIT = b"\xf3\x0f\x01\xd9"


class HostVisibility(NamedTuple):
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
        intercepts: AccessIntercepts,
        interrupts: InterruptController | None,
        clock: GuestClock,
        visibility: HostVisibility,
        ghcb: GhcbServer | None = None,
        page_instructions: PageInstructions | None = None,
        control: RunControl | None = None,
    ) -> None:
        self.write_was_coalesced = False
        self._engine = engine
        self._memory = memory
        self._intercepts = intercepts
        self._interrupts = interrupts
        self._clock = clock
        self._visibility = visibility
        self._ghcb = ghcb
        self._page_instructions = page_instructions
        self._exit: VmExit | None = None
        self._control = control or ThreadControl()
        self.is_halted = False
        """It executed HLT, and nothing has woken it yet; it goes on waiting when it is run again."""
        self.on_hypercall: Callable[[int, int], int] = hypercalls.answer
        """Number and privilege level to what RAX gets."""
        self.patches_vmcall = False
        """VMCALL is another processor's: KVM puts VMMCALL in its place (KVM_X86_QUIRK_FIX_HYPERCALL_INSN)."""
        self._flush_wanted = False
        self._closed = False
        self._executing = threading.Event()
        self._timer_set = threading.Lock()
        """Free for a moment when the ticker is to look at once: an event for one thread, and much faster."""
        self._timer_set.acquire()
        self._looks_at = 0
        self._lapic = None if interrupts is None else interrupts.lapic
        if self._lapic is not None:
            self._share(self._lapic)
        if interrupts is not None:
            interrupts.on_deadline = self._timer_was_set
        engine.hooks.hook_exceptions(
            PseudoException(self._on_refused_access), InstructionDecider(self._on_unknown_instruction)
        )
        engine.hooks.answer_interrupts(self._acknowledge, self._poll)
        clock.on_skip = engine.hooks.advance_tsc
        self._ticker = threading.Thread(target=self._tick, name="casemate-ticker", daemon=True)
        self._ticker.start()

    def _share(self, lapic: LocalApic) -> None:
        engine = self._engine
        lapic.keep_base_at(engine.msrs.address_of(msr.APIC_BASE))
        lapic.tsc, lapic.on_error = engine.hooks, engine.hooks.fail
        engine.hooks.use_lapic(lapic.address)

    def run(self) -> VmExit:
        """Execute until something happens that the bus cannot handle."""
        if not self._visibility.may_run():
            return KvmInternalError("KVM_RUN refused (modelled): the launch of this guest is not finished")
        self._memory.map_holes()
        while True:
            if self._control.stop_requested():
                self._control.take_stop()
                return Interrupted()
            if self._lapic is not None and self._lapic.take_init():
                self.is_halted = False
                self._engine.init()
            if self.is_halted:
                self._exit = self._halt()
                if self._exit is None:
                    continue
            if self._interrupts is not None and self._interrupts.pending():
                self._engine.hooks.request_interrupt()
            if self._exit is None:
                if self._control.take_stale():
                    self._engine.flush_translations()
                error = self._execute()
                self._engine.hooks.take_error()
                self._after_execution(error)
            if self._exit is not None:
                vm_exit, self._exit = self._exit, None
                return vm_exit

    def vc_counts(self) -> Counter[int]:
        """#VCs that were raised, by exit code."""
        return Counter(self._engine.hooks.vc_counts())

    def stop(self) -> None:
        """Make ``run`` return soon; from any thread."""
        self._control.request_stop()
        self._engine.stop()

    def wake(self) -> None:
        """End a wait in HLT early; from any thread."""
        self._control.wake()

    def reset(self) -> None:
        """The x86 reset state; translated code is forgotten."""
        self.is_halted = False
        self._engine.flush_translations()
        self._engine.reset()

    def rip(self) -> int | None:
        """The instruction pointer, or None where they are protected."""
        return None if self._visibility.registers else self._engine.read(registers.RIP)

    def set_rip(self, rip: int) -> None:
        """Go on elsewhere."""
        self._engine.write(registers.RIP, rip)

    def set_msr(self, index: int, value: int) -> None:
        """Set one model-specific register."""
        self._engine.set_msr(index, value)

    def writing_instruction(self, gpa: int, size: int) -> int | None:
        """The engine calls out with the pointer still on the instruction."""
        return self.rip()

    def code_at_rip(self, rip: int | None = None) -> tuple[bytes, int] | None:
        """The bytes of code and their width in bits; None where they are encrypted."""
        if self._visibility.memory:
            return None
        offset = 0 if rip is None else rip - self._engine.read(registers.RIP)
        code = self._engine.code_at(self._engine.instruction_address() + offset)
        return None if code is None else (code, self._engine.code_bits())

    def memory_written(self, gpa: Gpa, size: int) -> None:
        """Translations of this range are stale: drop them all before the next block runs."""
        if self._engine.hooks.holds_code(gpa, size):
            self._flush_wanted = True
            self._engine.stop()

    def close(self) -> None:
        """End the ticker."""
        self._closed = True
        self._executing.set()
        self._wake_ticker()
        self._ticker.join()

    def _execute(self) -> int:
        self._executing.set()
        error = self._engine.start(self._engine.read(registers.RIP))
        self._executing.clear()
        return error

    def _after_execution(self, error: int) -> None:
        if self._flush_wanted:
            self._flush_wanted = False
            self._engine.flush_translations()
        if self._intercepts.fault is not None:
            self._exit, self._intercepts.fault = self._intercepts.fault, None
        elif self._exit is not None:
            return
        elif (stop := self._engine.hooks.debugger.take_stop()) is not None:
            self._exit = self._debug_event(*stop)
        elif self._engine.hooks.shut_down:
            self._exit = Shutdown(self.rip())
        elif error == ABORTED:
            self._exit = KvmInternalError("the CPU model gave up on the guest's code", self.rip())
        elif error:
            self._exit = KvmInternalError(
                f"the CPU model stopped: {self._engine.error_text(error)}", self.rip()
            )
        elif self._engine.hooks.halted:
            self._exit = self._halt()

    def _debug_event(self, what: int, watched: int) -> DebugEvent:
        vector = VECTOR_DB if what in (AT_BREAKPOINT, AT_DEBUG_REGISTER) else what
        return DebugEvent(
            vector, self._engine.linear_rip(), what == AT_BREAKPOINT, watched, what == AT_DEBUG_REGISTER
        )

    def _halt(self) -> VmExit | None:
        interrupts = self._interrupts
        if self._has_event():
            self.is_halted = False
            return None
        if interrupts is None or not self._engine.read(registers.RFLAGS) & _RFLAGS_IF:
            return Hlt(interrupts_enabled=False)
        self.is_halted = True
        while not interrupts.pending() and not self._has_event():
            if self._control.stop_requested():
                return None
            deadline = interrupts.deadline()
            wait = None if deadline is None else self._clock.idle_until(deadline)
            if wait != 0:
                self._control.wait(wait)
        self.is_halted = False
        return None

    def _has_event(self) -> bool:
        return self._engine.hooks.nmi_requested or (self._lapic is not None and self._lapic.has_event)

    def _acknowledge(self) -> int:
        try:
            interrupts = self._interrupts
            return interrupts.acknowledge() if interrupts is not None and interrupts.pending() else NO_VECTOR
        except BaseException as error:
            self._engine.hooks.fail(error)
            return NO_VECTOR

    def _poll(self) -> int:
        try:
            return self._interrupts is not None and self._interrupts.pending()
        except BaseException as error:
            self._engine.hooks.fail(error)
            return False

    def _on_refused_access(self, _uc: int, vector: int, _user: int | None) -> None:
        if vector == SHARED_ACCESS:
            self._on_shared_access()
        elif vector == REFUSED_WRITE:
            self._intercepts.finish()

    def _on_shared_access(self) -> None:
        try:
            assert self._page_instructions is not None
            self._page_instructions.states.share_touched()
        except BaseException as error:
            self._engine.hooks.fail(error)

    def _on_unknown_instruction(self) -> int:
        try:
            return self._execute_for_guest(self._engine.hooks)
        except BaseException as error:
            self._engine.hooks.fail(error)
            return EXECUTED

    def _execute_for_guest(self, hooks: EngineHooks) -> int:
        """VMGEXIT, VMMCALL, and an SNP guest's instructions on its pages."""
        code, text = self._engine.code_here(len(_VMGEXIT)), None
        if code.startswith(VMCALL) and not self.patches_vmcall:
            return UNDEFINED
        if code.startswith((VMMCALL, VMCALL)):
            if code.startswith(VMCALL):
                self._engine.write_virtual(self._engine.instruction_address(), VMMCALL)
                self._flush_wanted = True
            if self._visibility.registers:
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
        hooks.rip.value += len(code)
        if text is not None:
            self._end(text)
        return EXECUTED

    def _hypercall(self) -> None:
        engine, mask = self._engine, (1 << max(32, self._engine.code_bits())) - 1
        result = self.on_hypercall(engine.read(registers.RAX) & mask, engine.privilege())
        engine.write(registers.RAX, result & mask)

    def _end(self, text: str) -> None:
        self._exit = SevTermination(text, 0 if self._ghcb is None else self._ghcb.msr)
        self._engine.stop()

    def _tick(self) -> None:
        while not self._closed:
            self._executing.wait()
            if self._control.stop_requested():
                self._engine.stop()
            wait = self._until_timer()
            if wait <= 0:
                self._engine.hooks.kick()
                wait = _LOOK_SECONDS
            self._looks_at = self._clock.now() + int(wait * NANOSECONDS)
            self._timer_set.acquire(timeout=wait)

    def _timer_was_set(self, time: int) -> None:
        """Wake the ticker if it would be late."""
        if time < self._looks_at:
            self._looks_at = time
            self._wake_ticker()

    def _wake_ticker(self) -> None:
        if self._timer_set.locked():
            self._timer_set.release()

    def _until_timer(self) -> float:
        """Seconds until a timer is due, at most until it is time to look again."""
        if self._interrupts is None:
            return _LOOK_SECONDS
        deadline = self._interrupts.deadline()
        if deadline is None:
            return _LOOK_SECONDS
        return min((deadline - self._clock.now()) / NANOSECONDS, _LOOK_SECONDS)
