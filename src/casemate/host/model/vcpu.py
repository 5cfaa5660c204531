"""A modelled vCPU: runs the engine, delivers interrupts, waits in HLT (Linux api.rst, KVM_RUN)."""

from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from casemate.abi.sev.ghcb import ExitCode
from casemate.abi.x86 import msr
from casemate.address import PAGE_SIZE, Gpa
from casemate.host.clock import GuestClock
from casemate.host.exits import (
    DebugEvent,
    Hlt,
    Interrupted,
    KvmInternalError,
    SevTermination,
    Shutdown,
    VmExit,
)
from casemate.host.hypervisor import InterruptController, LocalApic, VcpuFacts
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
)
from casemate.host.model.cpu.records import (
    InstructionDecider,
    PseudoException,
)
from casemate.host.model.hypercalls import VMCALL, VMMCALL
from casemate.host.model.intercepts import AccessIntercepts
from casemate.host.model.memory import PhysicalMemory
from casemate.host.model.run_control import RunControl, ThreadControl
from casemate.host.model.ticker import Ticker

if TYPE_CHECKING:
    from casemate.host.model.sev.ghcb import GhcbServer
    from casemate.host.model.snp.instructions import PageInstructions

_SPIN_NS = 50_000
"""What passes for each sixteen PAUSEs, which take four microseconds."""
_LOOK_SECONDS = 0.02
"""How often somebody looks whether what was asked for was heard."""
_AGAIN_NS = 5_000_000
"""When the CPU is kicked anew for what waits for it."""
_TURN_SECONDS = 0.002
"""The same where other vCPUs wait for their turns, or the monitor for a window."""
_VMGEXIT = b"\xf3\x0f\x01\xd9"


class Activity(Enum):
    """What a vCPU does, or what it waits for."""

    RUNS = "runs"
    HALTED = "halted"
    """By HLT, until an interrupt."""
    STOPPED = "stopped"
    """By HLT with interrupts off: NMI, INIT and a reset are left."""
    WAITS = "waits"
    """For a start-up IPI, as all but the first do after a reset."""
    DESTROYED = "destroyed"
    """By another vCPU of an SNP guest, which may create it again."""
    HELD = "held"
    """For the same, by its own request (AP reset hold of SEV-ES)."""


class Group(Protocol):
    """The vCPUs of one VM, which take turns (``casemate.host.model.vcpu_group``)."""

    control: RunControl
    runs_them: bool

    def look_around(self) -> None:
        """Something may have been sent to another vCPU."""

    def memory_written(self) -> None:
        """Code was written to: no vCPU may execute what it translated before."""


class HostVisibility(NamedTuple):
    """What of a guest its host cannot see, and whether it may run yet."""

    memory: bool
    registers: bool
    may_run: Callable[[], bool]
    resets: Callable[[], Sequence[int]]
    """Where the save areas of a guest with protected state have its vCPUs start, as far as they were launched."""


class ModelVcpu:
    """One modelled CPU; see ``casemate.host.hypervisor.Vcpu`` for the protocol."""

    def __init__(
        self,
        number: int,
        engine: Engine,
        memory: PhysicalMemory,
        intercepts: AccessIntercepts,
        interrupts: InterruptController | None,
        clock: GuestClock,
        visibility: HostVisibility,
        ghcb: "GhcbServer | None" = None,
        page_instructions: "PageInstructions | None" = None,
        control: RunControl | None = None,
        group: Group | None = None,
    ) -> None:
        self.number = number
        self.write_was_coalesced = False
        # Without a local APIC whoever runs it knows when.
        self._lapic = None if interrupts is None else interrupts.lapic
        self._first_activity = Activity.WAITS if number and self._lapic is not None else Activity.RUNS
        self.activity = self._first_activity
        self._engine = engine
        self._group = group
        self._memory = memory
        self._intercepts = intercepts
        self._interrupts = interrupts
        self._clock = clock
        self._visibility = visibility
        self.ghcb = ghcb
        self._page_instructions = page_instructions
        self._exit: VmExit | None = None
        self._control = control or (ThreadControl() if group is None else group.control)
        self._release: Callable[[], None] = lambda: None
        self._starts = 0 if number else 1
        self._load: Callable[[Engine], str | None] | None = None
        self._load_on_init: Callable[[Engine], str | None] | None = None
        """Set the registers that another vCPU of an SNP guest made for it; what they return is why that cannot be."""
        self._was_inited = self._may_pass_hold = self._was_started = False
        self.on_hypercall: Callable[[int, int], int] = hypercalls.answer
        """Number and privilege level to what RAX gets."""
        self.exits_on_hlt = False
        """Who waits for interrupts is the monitor, which has all of the controllers."""
        self.patches_vmcall = False
        """VMCALL is another processor's: KVM puts VMMCALL in its place (KVM_X86_QUIRK_FIX_HYPERCALL_INSN)."""
        self._flush_wanted = False
        self._look_seconds = _TURN_SECONDS if interrupts is None else _LOOK_SECONDS
        runs_alone = group is None or not group.runs_them
        self._ticker = Ticker(clock, self._look, engine.hooks.user_data) if runs_alone else None
        if self._lapic is not None:
            self._share(self._lapic)
        engine.hooks.hook_exceptions(
            PseudoException(self._on_refused_access), InstructionDecider(self._on_unknown_instruction)
        )
        engine.hooks.answer_interrupts(self._acknowledge, self._poll)
        if clock.skips_waits:
            engine.hooks.hear_spins(self._spin)
        if self._ticker is None:
            return
        if interrupts is not None:
            interrupts.on_deadline = self._ticker.add_due
        clock.on_skip = self._time_skipped
        self._ticker.start()

    def join(self, group: Group) -> None:
        """There are others, which may send messages, and start this one."""
        self._group = group
        if self.ghcb is not None:
            self.ghcb.hold = self._hold
        if self._lapic is not None:
            self._lapic.hear_messages(group.look_around if group.runs_them else self._be_wanted)

    def _be_wanted(self) -> None:
        self.kick()
        self._control.wake()

    def _share(self, lapic: LocalApic) -> None:
        engine = self._engine
        lapic.keep_base_at(engine.msrs.address_of(msr.APIC_BASE))
        lapic.tsc, lapic.on_error = engine.hooks, engine.hooks.fail
        engine.hooks.use_lapic(lapic.address)

    def run(self) -> VmExit:
        """Execute until something happens that the bus cannot handle."""
        if (refusal := self.refusal()) is not None:
            return refusal
        while True:
            if self._control.stop_requested():
                self._control.take_stop()
                return Interrupted()
            if not self.is_ready():
                if self.activity is Activity.HALTED and not self._takes_interrupts():
                    return Hlt(interrupts_enabled=False)
                self._wait()
            elif (vm_exit := self.run_turn()) is not None:
                return vm_exit
            else:
                self._control.pass_turn()

    def refusal(self) -> KvmInternalError | None:
        """Why the guest cannot be run yet, or None when all is ready for it."""
        if not self._visibility.may_run():
            return KvmInternalError("KVM_RUN refused (modelled): the launch of this guest is not finished")
        self._memory.map_holes()
        return None

    def is_ready(self) -> bool:
        """Take what was sent to the vCPU; whether it has something to execute."""
        if self._lapic is not None and self._lapic.has_messages:
            self._take_messages(self._lapic)
        if self._load is not None:
            self._begin_as_created(self._load)
        if self.activity is Activity.HALTED and self._takes_interrupts() and self._is_interrupted():
            self.activity = Activity.RUNS
        if self.activity in (Activity.HALTED, Activity.STOPPED) and self._has_event():
            self.activity = Activity.RUNS
        return self.activity is Activity.RUNS

    def wants_turn(self) -> bool:
        """The same, as far as can be said without changing anything."""
        has_messages = self._lapic is not None and self._lapic.has_messages
        if self.activity is Activity.RUNS or has_messages or self._load is not None:
            return True
        return self.activity is Activity.HALTED and self.deadline() == 0

    def deadline(self) -> int | None:
        """Guest time of the next interrupt that it would take, 0 for now, None while none is known."""
        return None if self._interrupts is None else self._interrupts.deadline()

    def run_turn(self) -> VmExit | None:
        """Execute until something happens, for one that ``is_ready``; None if the vCPU can be run again."""
        if self._exit is None:  # else it could not begin
            self._execute()
        vm_exit, self._exit = self._exit, None
        return vm_exit

    @property
    def is_halted(self) -> bool:
        """It executed HLT, and nothing has woken it yet; it goes on waiting when it is run again."""
        return self.activity is Activity.HALTED

    @is_halted.setter
    def is_halted(self, halted: bool) -> None:
        self.activity = Activity.HALTED if halted else Activity.RUNS

    def _takes_interrupts(self) -> bool:
        return self._interrupts is not None and self._engine.hooks.takes_interrupts

    def _is_interrupted(self) -> bool:
        return self._interrupts is not None and self._interrupts.pending()

    def _take_messages(self, lapic: LocalApic) -> None:
        """INIT and start-up (Intel SDM volume 3A, 9.4; of a guest with protected state Linux sev.c)."""
        if lapic.take_init():
            self._was_inited = True
            self._load, self._load_on_init = self._load_on_init or self._load, None
            if not self._visibility.registers:
                self._engine.init()
                self.activity = Activity.WAITS if self.number else Activity.RUNS
        vector = lapic.take_startup()
        if vector is None:
            return
        if self.activity is Activity.HELD:
            self._starts += 1
            self._release()
            self.activity = Activity.RUNS
        elif self.activity is Activity.WAITS:
            self._start_up(vector)
        elif self._visibility.registers and self._was_inited:
            self._may_pass_hold = True  # it is on its way to the hold, and would sleep through its start
        self._was_inited = False

    def _start_up(self, vector: int) -> None:
        self._starts += 1
        if self._visibility.registers:
            self._engine.start_at(self._visibility.resets()[self.number])
        else:
            self._engine.start_at(vector << 12, selector=vector << 8)
        self.activity = Activity.RUNS

    def _hold(self, release: Callable[[], None]) -> None:
        """AP reset hold: call ``release`` at the start-up IPI, at once if it came already."""
        if self._may_pass_hold:
            self._may_pass_hold = False
            release()
            return
        self._release, self.activity = release, Activity.HELD
        self._engine.stop()

    def create(self, load: Callable[[Engine], str | None], *, on_init: bool) -> None:
        """Go on with the registers that ``load`` sets, or begin with them at the next INIT."""
        if on_init:
            self._load_on_init = load
        else:
            self._load = load
            self._engine.stop()
            self._control.wake()

    def destroy(self) -> None:
        """Execute nothing more until it is created again."""
        self.activity, self._load = Activity.DESTROYED, None
        self._engine.stop()

    def _begin_as_created(self, load: Callable[[Engine], str | None]) -> None:
        self._load, self.activity = None, Activity.RUNS
        self._starts += 1
        problem = load(self._engine)
        if problem is not None:
            self._end(f"vCPU {self.number}: {problem}")

    def facts(self) -> VcpuFacts:
        """What became of it."""
        return VcpuFacts(self.activity.value, self._starts, dict(self.vmgexits().most_common()))

    def vmgexits(self) -> Counter[str]:
        """Requests that it made of its host, by exit code."""
        served = Counter(self._engine.hooks.served())
        return served if self.ghcb is None else self.ghcb.requests + served

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
        self.activity = self._first_activity
        self._starts += 0 if self.number else 1
        self._was_inited = self._may_pass_hold = False
        self._load = self._load_on_init = None
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
            self.forget_translations()

    def forget_translations(self) -> None:
        """Execute nothing that was translated before, from the next block on."""
        self._flush_wanted = True
        self._engine.stop()

    @property
    def engine(self) -> Engine:
        """The CPU itself, for who keeps its state (KVM_GET_REGS and its like)."""
        return self._engine

    def interrupt_turn(self) -> None:
        """End its turn; from any thread."""
        self._engine.stop()

    def kick(self) -> None:
        """Have it raise what is due; from any thread, and it may be lost."""
        self._engine.kick()

    def close(self) -> None:
        """End the ticker."""
        if self._ticker is not None:
            self._ticker.close()

    def _execute(self) -> None:
        if self._raise_due():
            self._engine.hooks.request_interrupt()
        if self._flush_wanted or self._control.take_stale():
            self._flush_wanted = False
            self._engine.flush_translations()
        ticker = self._ticker
        if ticker is not None:
            ticker.executing.set()
        error = self._engine.start(self._engine.read(registers.RIP))
        if ticker is not None:
            ticker.executing.clear()
        self._engine.hooks.take_error()
        self._after_execution(error)

    def _after_execution(self, error: int) -> None:
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
            self._halt()

    def _debug_event(self, what: int, watched: int) -> DebugEvent:
        vector = VECTOR_DB if what in (AT_BREAKPOINT, AT_DEBUG_REGISTER) else what
        return DebugEvent(
            vector, self._engine.linear_rip(), what == AT_BREAKPOINT, watched, what == AT_DEBUG_REGISTER
        )

    def _halt(self) -> None:
        if self._has_event():
            return
        takes_interrupts = self._takes_interrupts()
        if self.exits_on_hlt:
            self._exit = Hlt(takes_interrupts)
        elif takes_interrupts:
            self.activity = Activity.HALTED
        elif self._group is None or self._interrupts is None:
            self._exit = Hlt(interrupts_enabled=False)
        else:
            self.activity = Activity.STOPPED

    def _wait(self) -> None:
        deadline = self.deadline() if self.activity is Activity.HALTED else None
        wait = None if deadline is None else self._clock.idle_until(deadline)
        if wait != 0:
            self._control.wait(wait)

    def _spin(self) -> bool:
        """Let the guest time pass that it waits for by PAUSE, up to its next timer; whether that is due."""
        try:
            now, deadline = self._clock.now(), self.deadline()
            until = now + _SPIN_NS if deadline is None else min(deadline, now + _SPIN_NS)
            self._clock.idle_until(until)
            return until == deadline
        except BaseException as error:
            self._engine.hooks.fail(error)
            return False

    def _has_event(self) -> bool:
        return self._engine.hooks.nmi_requested or (self._lapic is not None and self._lapic.has_event)

    def _acknowledge(self) -> int:
        try:
            interrupts = self._interrupts
            if interrupts is None or self._control.defers_interrupts() or not interrupts.pending():
                return NO_VECTOR
            vector = interrupts.acknowledge()
            self._tell_ticker()
            return vector
        except BaseException as error:
            self._engine.hooks.fail(error)
            return NO_VECTOR

    def _raise_due(self) -> bool:
        """Whether an interrupt waits, with what is due by now; the ticker gets to know what will be."""
        is_wanted = self._is_interrupted()
        self._tell_ticker()
        return is_wanted

    def _tell_ticker(self) -> None:
        if self._ticker is None:
            return
        deadline = self.deadline()
        self._ticker.set_due(self._clock.now() + _AGAIN_NS if deadline == 0 else deadline)

    def _time_skipped(self, nanoseconds: int) -> None:
        self._engine.hooks.advance_tsc(nanoseconds)
        if self._ticker is not None:
            self._ticker.time_skipped(nanoseconds)

    def _poll(self) -> int:
        try:
            is_wanted = self._raise_due()
            if self._group is not None:
                self._group.look_around()
            return is_wanted
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
            self._page_instructions.states.share_touched(self._engine.hooks.refused_gpa // PAGE_SIZE)
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
                if self._group is not None:
                    self._group.memory_written()
            if self._visibility.registers:
                return ExitCode.VMMCALL
            code = VMMCALL
            self._hypercall()
        elif code == _VMGEXIT and self.ghcb is not None:
            ended = self.ghcb.serve()
            text = None if ended is None else ended.text
        elif self._page_instructions is not None and code in self._page_instructions.codes:
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
        self._exit = SevTermination(text, 0 if self.ghcb is None else self.ghcb.msr)
        self._engine.stop()

    def _look(self) -> float:
        others_wait = self._control.others_wait()
        if others_wait:
            self._look_seconds = _TURN_SECONDS
        if others_wait or self._control.stop_requested():
            self._engine.stop()
        deadline = self.deadline()
        if deadline == 0:
            self._engine.kick()
        elif deadline is not None and self._ticker is not None:
            self._ticker.add_due(deadline)
        return self._look_seconds
