"""The descriptor of a vCPU: its state by ioctl, and its run (Linux api.rst, "vcpu ioctls").

What is set takes effect at once where the guest stands between two instructions. In the middle of an access only
general registers do; any other new state makes the access one that never happened.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from ctypes import c_int, c_uint32
from errno import E2BIG, EEXIST, EINVAL, ENOENT, ENOMEM, ENXIO

from casemate.abi.kvm.capabilities import Capability
from casemate.abi.kvm.exit_reasons import ExitReason
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import (
    CpuidEntry2,
    EnableCap,
    MpState,
    PreFaultMemory,
    Regs,
    Sregs,
    Translation,
)
from casemate.abi.layout import Struct
from casemate.address import PAGE_SIZE
from casemate.host.exits import DebugEvent, Hlt, Interrupted, MemoryFault, VmExit
from casemate.host.model import hypercalls
from casemate.host.model.cpu.hooks import Callbacks
from casemate.host.model.cpu.state import CpuState
from casemate.host.model.cpu.unicorn_api import library as engine_library
from casemate.host.model.vcpu import Activity
from casemate.host.model.vm import ModelVm
from casemate.host.secure_processor import VcpuReset
from casemate.userkvm.capabilities import FIX_HYPERCALL
from casemate.userkvm.coherence import CodeWatch
from casemate.userkvm.control_registers import essence, known_cr4, problem_of
from casemate.userkvm.cpuid import VcpuCpuid, supported
from casemate.userkvm.library import VcpuRecord, address_of, load, stay_on_stack
from casemate.userkvm.no_irqchip import NoIrqchip
from casemate.userkvm.port_instructions import port_instruction
from casemate.userkvm.split_irqchip import SplitIrqchip
from casemate.userkvm.stats import VCPU_STATS, open_stats
from casemate.userkvm.table import (
    Refused,
    answers,
    copy_in,
    copy_out,
    copy_out_cpuid,
)
from casemate.userkvm.vcpu_loop import ExitDoor, InsideBus, SignalControl, is_window_open, is_window_wanted
from casemate.userkvm.vcpu_msrs import VcpuMsrs
from casemate.userkvm.vcpu_owner import VcpuOwner
from casemate.userkvm.vcpu_state import MP_STATES

_RESET_BASE, _PE = 0xFFFF0000, 1
_MAX_CPUID = 256
_LONG, _MAP_GPA_RANGE, _KICKS = 4, 12, (5, 11)
"""Bytes of an input that clears the upper half of RAX."""
_ENCRYPTED, _LARGE_PAGES, _LARGE = 1 << 4, 1, 512
"""Of KVM_HC_MAP_GPA_RANGE, and the pages of a large one."""
_FAULTS = {signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGFPE}


class Vcpu(VcpuMsrs):
    """One vCPU of ``vm``. Raises Refused where the library has no memory for it."""

    unknown_errno = EINVAL

    def __init__(self, vm: VcpuOwner, number: int) -> None:
        super().__init__()
        model = vm.realize()  # may fail, and then there is nothing of a vCPU yet
        self.vm = vm
        self.number = number
        self.index = vm.count_vcpus()
        """Which one it is by the order in which they were made; the first one starts."""
        self._library = load()
        fd = c_int()
        self.address: int = self._library.kvm_new_vcpu(ctypes.byref(fd), ctypes.addressof(vm.inside))
        if not self.address:
            raise Refused(ENOMEM, "no memory for a vCPU")
        self.fd = fd.value
        self.record = VcpuRecord.from_address(self.address)
        self.cpuid: VcpuCpuid = vm.cpuid if not self.index else vm.cpuid.of_another()
        self.faults: list[str] = []
        self.is_closed = False
        """Nobody has a descriptor of it any more."""
        self._later: list[Callable[[], None]] = []
        self._accessed_at = 0
        """The instruction whose access was undone."""
        self._door = ExitDoor(self.record, self.address)
        self._make_model(model)

    def _make_model(self, model: ModelVm) -> None:
        vm = self.vm
        control = SignalControl(self.record, self.address)
        # The threads that the model makes must take none of the monitor's signals.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
        chips = NoIrqchip() if vm.chips is None else vm.chips
        try:
            bus = InsideBus(self._door, self.address, vm, self.index)
            self.model = model.create_vcpu_alone(bus, chips, self.index, self.cpuid, control)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.model.on_hypercall = self._hypercall
        self.model.exits_on_hlt = isinstance(chips, NoIrqchip)
        vm.inside.others_wait = model.others_wait_at
        self._engine = self.model.engine
        self._engine.hooks.share_memory()
        self._state = CpuState(self._engine)
        library, record = self._library, self.record
        python = self._engine.hooks.divert(
            Callbacks(
                address_of(library.kvm_read_port),
                address_of(library.kvm_write_port),
                address_of(library.kvm_read_mmio),
                address_of(library.kvm_write_mmio),
                None,
            )
        )
        record.read_port, record.write_port, record.read_mmio, record.write_mmio = python[:4]
        record.address_mask = vm.address_mask
        record.stop_engine = address_of(engine_library.uc_emu_stop)
        record.engine = self._engine.handle
        self._state.xcr0 = 1
        self.keep_msrs()
        record.undo_port, record.exchange = self._engine.hooks.undo_port_at, self._engine.hooks.exchange_at
        if vm.chips is not None and not self.index:
            vm.chips.kick = self.kick
        self._injected = chips if isinstance(chips, (SplitIrqchip, NoIrqchip)) else None
        if self._injected is not None:
            record.eflags = self._engine.hooks.eflags_at
            self._injected.taken = self._interrupt_taken
        if isinstance(chips, SplitIrqchip):
            chips.on_ended = self._interrupt_ended
        self._shown_regs, self._shown_sregs = self._state.regs(), self._state.sregs()
        self._watch: CodeWatch | None = None
        if vm.kernel.watches_code and not vm.kind.is_confidential:
            self._watch = CodeWatch(record, self.address, *self._engine.hooks.code_marks())
            self._engine.hooks.tell_before_stores(self._watch.before_store)
            self.slots_changed()

    def slots_changed(self) -> None:
        """Watch the code in the slots that are there now."""
        if self._watch is not None:
            self._watch.set(list(self.vm.slots.values()))

    @property
    def exit_reason(self) -> str:
        """Why KVM_RUN returned."""
        number = c_uint32.from_address(self.record.run + 8).value
        return ExitReason(number).kernel_name if number in set(ExitReason) else f"{number}"

    @property
    def reset_state(self) -> VcpuReset:
        """Where it starts, as the monitor set it."""
        return VcpuReset(self._shown_sregs.cs.base + self._shown_regs.rip, self._shown_regs.rdx)

    def kick(self) -> None:
        """An interrupt waits; from any thread."""
        self._engine.kick()
        self._library.kvm_wake(self.address)

    def leave_engine(self) -> None:
        """Have no signal stop the engine any more: the model closes it."""
        self.record.engine = 0

    def close(self) -> None:
        """Give the library's part back, once the model's threads are gone; the model's is the VM's."""
        self._library.kvm_free_vcpu(self.address)

    # The coroutine.

    def loop(self) -> None:
        """All of the vCPU's life, on its own stack, until its last descriptor is closed."""
        stay_on_stack(self.record)
        while not self.record.must_end:
            try:
                self._apply()
                self.arm_step()
                if self.record.eflags:
                    self._tell_controllers()
                self.model.patches_vmcall = not self.vm.disabled_quirks & FIX_HYPERCALL
                vm_exit = self.model.run()
                if self.record.must_end:
                    continue
                if self.record.held:
                    self._library.kvm_park(self.address)
                    if isinstance(vm_exit, Interrupted) and not self.record.stop_wanted:
                        continue
                if self.record.eflags and isinstance(vm_exit, Interrupted) and not self.record.stop_wanted:
                    continue
                if self.record.completing:
                    self._complete()
                elif not self.record.abandoned:
                    self._leave(vm_exit)
            except Exception as error:
                self.vm.say(f"internal error: {type(error).__name__}: {error}; please report it")
                self._door.fail()

    def _tell_controllers(self) -> None:
        """Those in the monitor: what ended, and that the guest would take an interrupt."""
        self.record.attention = 0
        while isinstance(self.vm.chips, SplitIrqchip) and self.vm.chips.ended:
            self._door.leave_for_end(self.vm.chips.ended.pop(0))
        if is_window_wanted(self.record) and is_window_open(self.record):
            self._door.leave(ExitReason.IRQ_WINDOW_OPEN)

    def _apply(self) -> None:
        was_abandoned = self.record.abandoned
        if was_abandoned:
            self.record.abandoned = self.record.stop_wanted = 0
        work, self._later = self._later, []
        for each in work:
            each()
        if was_abandoned:  # the engine may have gone on to the end of its block
            if self._shown_regs.rip != self._accessed_at:
                self.record.replay = 0
            self._state.set_regs(self._shown_regs)

    def _complete(self) -> None:
        """IN or OUT was reported, and undone: now it happens. A string instruction happens when it is made again."""
        record = self.record
        record.completing = record.abandoned = record.stop_wanted = 0
        size, is_input = port_instruction(self._engine.code_here(), self._engine.code_bits())
        if size:
            regs = self._state.regs()
            if is_input:
                mask = (1 << 8 * is_input) - 1
                regs.rax = regs.rax & ~(mask if is_input < _LONG else (1 << 64) - 1) | record.answer & mask
            regs.rip += size
            self._state.set_regs(regs)
            record.replay = 0
        self._library.kvm_pause(self.address)

    def _leave(self, vm_exit: VmExit) -> None:
        if isinstance(vm_exit, Hlt) and self.vm.chips is not None:
            self.model.is_halted = True
            self._door.wait_for_signal()
            return
        if isinstance(vm_exit, DebugEvent):
            self._door.leave_for_debugger(self.debug_exit(vm_exit))
            return
        if not isinstance(vm_exit, (Interrupted, Hlt)):
            text = self.vm.describe(vm_exit)
            self.vm.say(text)
            if isinstance(vm_exit, MemoryFault):
                self.faults.append(text)
        self._door.leave_for(vm_exit)

    def _hypercall(self, number: int, privilege: int) -> int:
        if number == _MAP_GPA_RANGE and not privilege and self.vm.hypercall_exits >> number & 1:
            regs = self._state.regs()
            is_misplaced = regs.rbx % PAGE_SIZE or not regs.rcx or regs.rbx + regs.rcx * PAGE_SIZE >= 1 << 64
            arguments = (regs.rbx, regs.rcx, regs.rdx)
            is_long = self._engine.code_bits() == 64
            return -EINVAL if is_misplaced else self._door.hypercall(number, arguments, is_long=is_long)
        if number in _KICKS and not privilege and not self.msrs.enforces_features:
            return 0
        return hypercalls.answer(number, privilege)

    def change_pages(self, page: int, count: int, *, private: bool) -> bool:
        """A page state change is the monitor's to make, if it enabled these exits (sev.c, snp_begin_psc)."""
        if not self.vm.hypercall_exits >> _MAP_GPA_RANGE & 1:
            return False
        large = not (page | count) % _LARGE
        flags = (_ENCRYPTED if private else 0) | (_LARGE_PAGES if large else 0)
        return not self._door.hypercall(_MAP_GPA_RANGE, (page * PAGE_SIZE, count, flags), is_long=True)

    def pages_touched(self, page: int, *, private: bool) -> None:
        """KVM_EXIT_MEMORY_FAULT."""
        self._door.leave_for_page(page * PAGE_SIZE, private=private)

    def _change(self, work: Callable[[], None]) -> None:
        """Do what changes where the guest is: now, or once the access that it is in is undone."""
        if self.record.in_access:
            if not self.record.abandoned:
                self._accessed_at = self._state.regs().rip
            self.record.abandoned = 1
            self._later.append(work)
        else:
            work()

    def answer(self, request: int, argument: int) -> tuple[int, Struct | None]:
        """Whatever is asked for is asked behind the IN or OUT that ``immediate_exit`` completed."""
        is_latched = self.record.latched and self.record.pending == ExitReason.IO
        if is_latched and not self.record.in_run and self._is_open:  # nobody sees where a protected guest is
            self._library.kvm_complete(self.address)
        return super().answer(request, argument)

    # Registers.

    @property
    def _is_open(self) -> bool:
        return not self.vm.is_protected

    @answers(Ioctl.GET_REGS, Regs)
    def get_regs(self, value: Regs) -> None:
        """As they are; those of a protected guest as they were set."""
        ctypes.memmove(ctypes.byref(value), self._known_regs().to_bytes(), Regs.SIZE)

    def _known_regs(self) -> Regs:
        if self._is_open and not self._later:
            self._shown_regs = self.without_step(self._state.regs())
        return self._shown_regs

    @answers(Ioctl.SET_REGS, Regs)
    def set_regs(self, value: Regs) -> None:
        """Only what differs from how they are: a monitor writes everything back."""
        before, self._shown_regs = self._known_regs(), Regs.from_bytes(value)
        changed = {name for name, *_ in Regs._fields_ if getattr(value, name) != getattr(before, name)}
        if not changed or (not self._is_open and self.vm.is_running):
            return
        if self.record.in_access and not changed & {"rip", "rflags"} and not self._later:
            self._state.set_regs(value, changed)
        else:
            self._change(lambda: self._state.set_regs(value, changed))

    @answers(Ioctl.GET_SREGS, Sregs)
    def get_sregs(self, value: Sregs) -> None:
        """Likewise."""
        ctypes.memmove(ctypes.byref(value), self._known_sregs().to_bytes(), Sregs.SIZE)

    def _known_sregs(self) -> Sregs:
        if self._is_open and not self._later:
            self._shown_sregs = self._state.sregs()
        return self._shown_sregs

    @answers(Ioctl.SET_SREGS, Sregs)
    def set_sregs(self, value: Sregs) -> None:
        """Likewise; what the monitor's normal form alone changed does not count."""
        if problem := problem_of(value, self._cr4_bits()):
            raise Refused(EINVAL, problem)
        before, self._shown_sregs = self._known_sregs(), Sregs.from_bytes(value)
        if essence(value) == essence(before) or (not self._is_open and self.vm.is_running):
            return
        if self.record.in_access and not self._later:
            self._shown_regs = self._state.regs()
        if value.cs.base == _RESET_BASE and not value.cr0 & _PE:
            self._change(self.model.reset)
        self._change(lambda: self._set_sregs(value))

    def _cr4_bits(self) -> int:
        return known_cr4(self.cpuid.entries or supported())

    def _set_sregs(self, value: Sregs) -> None:
        self._state.set_sregs(value)
        self._engine.flush_translations()

    @answers(Ioctl.GET_MP_STATE, MpState)
    def get_mp_state(self, value: MpState) -> None:
        """What it waits for."""
        value.mp_state = MP_STATES[self.model.activity]

    @answers(Ioctl.SET_MP_STATE, MpState)
    def set_mp_state(self, value: MpState) -> None:
        """Wake it, or have it wait."""
        found = next((activity for activity, state in MP_STATES.items() if state == value.mp_state), None)
        if found is None or (found is Activity.WAITS and self.vm.chips is None):
            raise Refused(EINVAL, f"MP state {value.mp_state}")
        if found is not Activity.HELD:
            self.model.activity = found

    # CPUID.

    @answers(Ioctl.SET_CPUID2)
    def set_cpuid(self, address: int) -> None:
        """The guest is told this from now on."""
        count = int.from_bytes(copy_in(address, 4), "little")
        if count > _MAX_CPUID:
            raise Refused(E2BIG, f"{count} leaves")
        data = copy_in(address + 8, count * CpuidEntry2.SIZE)
        entries = [CpuidEntry2.from_bytes(data, at) for at in range(0, len(data), CpuidEntry2.SIZE)]
        if self.record.started:
            if [bytes(entry) for entry in entries] != [bytes(entry) for entry in self.cpuid.entries]:
                raise Refused(EINVAL, "the vCPU ran with other leaves")
            return
        self.cpuid.set(entries)
        self._engine.hooks.forget_cpuid()

    @answers(Ioctl.GET_CPUID2)
    def get_cpuid(self, address: int) -> None:
        """The table; E2BIG if there is no room."""
        copy_out_cpuid(address, self.cpuid.entries)

    # Interrupts and the rest.

    def _interrupt_taken(self) -> None:
        self.record.queued = 0

    def _interrupt_ended(self) -> None:
        self.record.attention = 1
        self._engine.stop()

    @answers(Ioctl.INTERRUPT)
    def interrupt(self, address: int) -> None:
        """What the monitor's 8259s say."""
        vector = int.from_bytes(copy_in(address, 4), "little")
        if self._injected is None:
            raise Refused(ENXIO, "the 8259s are in the kernel")
        if vector > 0xFF or self.record.queued:
            raise Refused(EINVAL if vector > 0xFF else EEXIST, f"vector {vector}")
        self.record.queued = 1
        self._injected.inject(vector)
        self.kick()

    @answers(Ioctl.GET_LAPIC)
    def get_lapic(self, address: int) -> None:
        """The registers' page."""
        if self.vm.chips is None:
            raise Refused(EINVAL, "no irqchip")
        copy_out(address, self.vm.chips.save_lapic(self.index))

    @answers(Ioctl.SET_LAPIC)
    def set_lapic(self, address: int) -> None:
        """Likewise; what it says already is left alone, so that no timer starts anew."""
        if self.vm.chips is None:
            raise Refused(EINVAL, "no irqchip")
        page = copy_in(address, 1024)
        if page != self.vm.chips.save_lapic(self.index):
            self.vm.chips.load_lapic(page, self.index)

    @answers(Ioctl.NMI)
    def nmi(self, _argument: int) -> None:
        """Taken when the vCPU runs next; one that comes while another waits is that one."""
        self._engine.hooks.request_nmi()

    @answers(Ioctl.SET_SIGNAL_MASK)
    def set_signal_mask(self, address: int) -> None:
        """In force while the guest runs."""
        if not address:
            self.record.has_mask = 0
            return
        size = int.from_bytes(copy_in(address, 4), "little")
        if size != 8:
            raise Refused(EINVAL, f"a signal mask of {size} bytes")
        self.record.signal_mask = int.from_bytes(copy_in(address + 4, size), "little")
        self.record.has_mask = 1

    @answers(Ioctl.TRANSLATE, Translation)
    def translate(self, value: Translation) -> None:
        """By the guest's page tables as they are."""
        found = None if self.record.in_access else self._engine.translate(value.linear_address)
        value.valid, value.physical_address = found is not None, found or 0
        value.writeable = value.valid
        value.usermode = 0

    @answers(Ioctl.GET_STATS_FD)
    def get_stats(self, _argument: int) -> int:
        """What the library counts."""
        identity = f"kvm-{os.getpid()}/vcpu-{self.number}"
        return open_stats(self.record.stats_fd, identity, VCPU_STATS)

    @answers(Ioctl.X86_SETUP_MCE)
    @answers(Ioctl.KVMCLOCK_CTRL)
    @answers(Ioctl.SET_VAPIC_ADDR)
    def take(self, _argument: int) -> None:
        """Nothing to do."""

    @answers(Ioctl.ENABLE_CAP, EnableCap)
    def enable_cap(self, value: EnableCap) -> None:
        """Paravirtual features are enforced, or not."""
        if value.flags or value.cap != Capability.ENFORCE_PV_FEATURE_CPUID:
            raise Refused(EINVAL, f"capability {value.cap}")
        self.msrs.enforces_features = bool(value.args[0])

    @answers(Ioctl.PRE_FAULT_MEMORY, PreFaultMemory)
    def pre_fault(self, value: PreFaultMemory) -> None:
        """Pages are the guest's anyway; those of no slot are ENOENT."""
        if not self.vm.kernel.capabilities.answer(Capability.PRE_FAULT_MEMORY):
            raise Refused(EINVAL, "this kernel has no such ioctl")
        if (
            value.flags
            or (value.gpa | value.size) % PAGE_SIZE
            or not value.size
            or value.gpa + value.size >> 64
        ):
            raise Refused(EINVAL, "misaligned")
        if self.vm.host_address(value.gpa, PAGE_SIZE) is None:
            raise Refused(ENOENT, f"{value.gpa:#x} is in no slot")
        while value.size and self.vm.host_address(value.gpa, PAGE_SIZE) is not None:
            value.gpa, value.size = value.gpa + PAGE_SIZE, value.size - PAGE_SIZE

    @answers(Ioctl.TPR_ACCESS_REPORTING)
    @answers(Ioctl.SMI)
    def refuse(self, _argument: int) -> None:
        """Not modelled."""
        raise Refused(EINVAL, "not modelled")
