"""The descriptor of a vCPU: its state by ioctl, and its run (Linux api.rst, "vcpu ioctls").

What is set takes effect at once where the guest stands between two instructions. In the middle of an access only
general registers do; any other new state makes the access one that never happened.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from ctypes import c_int, c_uint32
from errno import E2BIG, EINVAL, ENOMEM, ENXIO
from typing import Any, Protocol

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kvm.exit_reasons import ExitReason
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import CpuidEntry2, MpState, MsrEntry, Regs, Sregs, Translation
from casemate.abi.x86 import msr
from casemate.host.exits import Hlt, Interrupted, MemoryFault, VmExit
from casemate.host.model.cpu.hooks import Callbacks
from casemate.host.model.cpu.msr import ENGINE, UNKNOWN
from casemate.host.model.cpu.state import CpuState
from casemate.host.model.cpu.unicorn_api import library as engine_library
from casemate.host.model.vm import ModelVm
from casemate.host.secure_processor import VcpuReset
from casemate.host.slots import MemorySlot
from casemate.userkvm.coherence import CodeWatch
from casemate.userkvm.cpuid import VcpuCpuid
from casemate.userkvm.ioeventfd import Ioeventfds
from casemate.userkvm.irqchip import Irqchip
from casemate.userkvm.kernel import Kernel
from casemate.userkvm.library import Inside, VcpuRecord, address_of, load
from casemate.userkvm.table import (
    Descriptor,
    Refused,
    answer_msrs,
    answers,
    copy_in,
    copy_out,
    copy_out_cpuid,
)
from casemate.userkvm.vcpu_loop import ExitDoor, InsideBus, SignalControl

RUNNABLE, HALTED = 0, 3
"""``kvm_mp_state.mp_state``."""
_RESET_BASE, _PE = 0xFFFF0000, 1
_MAX_CPUID = 256
_FXSAVE, _XSAVE = 512, 4096
_XSTATE_BV = 512
_FAULTS = {signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGFPE}


class VcpuOwner(Protocol):
    """What a vCPU needs of its VM (``casemate.userkvm.vm.Vm``)."""

    number: int
    kernel: Kernel
    kind: GuestKind
    inside: Inside
    cpuid: VcpuCpuid
    chips: Irqchip | None
    ioeventfds: Ioeventfds
    slots: dict[int, MemorySlot]

    @property
    def is_protected(self) -> bool:
        """Registers and memory are the guest's alone."""

    @property
    def is_running(self) -> bool:
        """The guest may have executed something."""

    @property
    def address_mask(self) -> int:
        """What of an address the bus sees."""

    def realize(self) -> ModelVm:
        """The modelled VM."""

    def say(self, text: str) -> None:
        """Tell the user."""

    def describe(self, vm_exit: VmExit) -> str:
        """An exit in words."""

    def tsc_khz(self) -> int:
        """Of the time-stamp counter."""


class Vcpu(Descriptor):
    """One vCPU of ``vm``. Raises Refused where the library has no memory for it."""

    unknown_errno = EINVAL

    def __init__(self, vm: VcpuOwner, number: int) -> None:
        self.vm = vm
        self.number = number
        self._library = load()
        fd = c_int()
        self.address: int = self._library.kvm_new_vcpu(ctypes.byref(fd), ctypes.addressof(vm.inside))
        if not self.address:
            raise Refused(ENOMEM, "no memory for a vCPU")
        self.fd = fd.value
        self.record = VcpuRecord.from_address(self.address)
        self.cpuid: VcpuCpuid = vm.cpuid
        self.faults: list[str] = []
        self.is_closed = False
        """Nobody has a descriptor of it any more."""
        self._kept: dict[Ioctl, bytes] = {}
        """State that is kept for the monitor and that the guest does not see, by the ioctl that reads it."""
        self._msrs: dict[int, int] = {}
        self._later: list[Callable[[], None]] = []
        self._door = ExitDoor(self.record, self.address)
        self._make_model()

    def _make_model(self) -> None:
        vm = self.vm
        model = vm.realize()
        control = SignalControl(self.record, self.address)
        # The threads that the model makes must take none of the monitor's signals.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
        try:
            bus = InsideBus(self.address, vm.chips, vm.ioeventfds)
            self.model = model.create_vcpu(bus, vm.chips, control=control)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._engine = model.engine
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
        if vm.chips is not None:
            vm.chips.kick = self.kick
        self._shown_regs, self._shown_sregs = self._state.regs(), self._state.sregs()
        self._watch: CodeWatch | None = None
        if vm.kernel.watches_code and not vm.kind.is_confidential:
            self._watch = CodeWatch(record, self.address, *self._engine.hooks.code_marks())
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
        self._engine.hooks.kick()
        self._library.kvm_wake(self.address)

    def close(self) -> None:
        """Give the library's part back; the model's is the VM's."""
        self._library.kvm_free_vcpu(self.address)

    # The coroutine.

    def loop(self) -> None:
        """All of the vCPU's life, on its own stack, until its last descriptor is closed."""
        while not self.record.must_end:
            try:
                self._apply()
                vm_exit = self.model.run()
                if self.record.abandoned or self.record.must_end:
                    continue
                self._leave(vm_exit)
            except Exception as error:
                self.vm.say(f"internal error: {type(error).__name__}: {error}; please report it")
                self._door.fail()

    def _apply(self) -> None:
        was_abandoned = self.record.abandoned
        if was_abandoned:
            self.record.abandoned = self.record.stop_wanted = 0
        work, self._later = self._later, []
        for each in work:
            each()
        if was_abandoned:  # the engine went on to the end of its block
            self._state.set_regs(self._shown_regs)

    def _leave(self, vm_exit: VmExit) -> None:
        if isinstance(vm_exit, Hlt) and self.vm.chips is not None:
            self.model.is_halted = True
            self._door.wait_for_signal()
            return
        if not isinstance(vm_exit, (Interrupted, Hlt)):
            text = self.vm.describe(vm_exit)
            self.vm.say(text)
            if isinstance(vm_exit, MemoryFault):
                self.faults.append(text)
        self._door.leave_for(vm_exit)

    def _change(self, work: Callable[[], None]) -> None:
        """Do what changes where the guest is: now, or once the access that it is in is undone."""
        if self.record.in_access:
            self.record.abandoned = 1
            self._later.append(work)
        else:
            work()

    # Registers.

    @property
    def _is_open(self) -> bool:
        return not self.vm.is_protected

    @answers(Ioctl.GET_REGS, Regs)
    def get_regs(self, value: Regs) -> None:
        """As they are; those of a protected guest as they were set."""
        if self._is_open and not self._later:
            self._shown_regs = self._state.regs()
        ctypes.memmove(ctypes.byref(value), self._shown_regs.to_bytes(), Regs.SIZE)

    @answers(Ioctl.SET_REGS, Regs)
    def set_regs(self, value: Regs) -> None:
        """Only what differs from what was last read: a monitor writes everything back."""
        before, self._shown_regs = self._shown_regs, Regs.from_bytes(value)
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
        if self._is_open and not self._later:
            self._shown_sregs = self._state.sregs()
        ctypes.memmove(ctypes.byref(value), self._shown_sregs.to_bytes(), Sregs.SIZE)

    @answers(Ioctl.SET_SREGS, Sregs)
    def set_sregs(self, value: Sregs) -> None:
        """Likewise; what the monitor's normal form alone changed does not count."""
        before, self._shown_sregs = self._shown_sregs, Sregs.from_bytes(value)
        if _essence(value) == _essence(before) or (not self._is_open and self.vm.is_running):
            return
        if value.cs.base == _RESET_BASE and not value.cr0 & _PE:
            self._change(self.model.reset)
        self._change(lambda: self._set_sregs(value))

    def _set_sregs(self, value: Sregs) -> None:
        self._state.set_sregs(value)
        self._engine.flush_translations()

    @answers(Ioctl.GET_MP_STATE, MpState)
    def get_mp_state(self, value: MpState) -> None:
        """Runnable or halted."""
        value.mp_state = HALTED if self.model.is_halted else RUNNABLE

    @answers(Ioctl.SET_MP_STATE, MpState)
    def set_mp_state(self, value: MpState) -> None:
        """Wake it, or have it wait."""
        if value.mp_state not in (RUNNABLE, HALTED):
            raise Refused(EINVAL, f"MP state {value.mp_state}")
        self.model.is_halted = value.mp_state == HALTED

    @answers(Ioctl.GET_FPU)
    def get_fpu(self, address: int) -> None:
        """x87 and SSE in KVM's own order."""
        area = self._state.fxsave()
        head = area[0:2] + area[2:4] + area[4:5] + b"\0" + area[6:24]
        copy_out(address, area[32:160] + head + area[160:416] + area[24:28] + bytes(4))

    @answers(Ioctl.SET_FPU)
    def set_fpu(self, address: int) -> None:
        """Likewise."""
        data = copy_in(address, 416)
        head = data[128:152]
        area = head[0:5] + b"\0" + head[6:24] + data[408:412] + bytes(4) + data[0:128] + data[152:408]
        self._state.set_fxsave(area.ljust(_FXSAVE, b"\0"))

    @answers(Ioctl.GET_XSAVE)
    @answers(Ioctl.GET_XSAVE2)
    def get_xsave(self, address: int) -> None:
        """The legacy region; the guest has nothing beyond it."""
        area = bytearray(self._state.fxsave().ljust(_XSAVE, b"\0"))
        area[_XSTATE_BV] = 3
        copy_out(address, bytes(area))

    @answers(Ioctl.SET_XSAVE)
    def set_xsave(self, address: int) -> None:
        """Likewise."""
        self._state.set_fxsave(copy_in(address, _XSAVE)[:_FXSAVE])

    @answers(Ioctl.GET_VCPU_EVENTS)
    def get_events(self, address: int) -> None:
        """None waits."""
        self._get_kept(Ioctl.GET_VCPU_EVENTS, address)

    @answers(Ioctl.SET_VCPU_EVENTS)
    def set_events(self, address: int) -> None:
        """Kept."""
        self._set_kept(Ioctl.GET_VCPU_EVENTS, address)

    @answers(Ioctl.GET_DEBUGREGS)
    def get_debug(self, address: int) -> None:
        """As set."""
        self._get_kept(Ioctl.GET_DEBUGREGS, address)

    @answers(Ioctl.SET_DEBUGREGS)
    def set_debug(self, address: int) -> None:
        """Kept."""
        self._set_kept(Ioctl.GET_DEBUGREGS, address)

    @answers(Ioctl.GET_XCRS)
    def get_xcrs(self, address: int) -> None:
        """As set, at first x87 alone."""
        self._get_kept(Ioctl.GET_XCRS, address)

    @answers(Ioctl.SET_XCRS)
    def set_xcrs(self, address: int) -> None:
        """Kept."""
        self._set_kept(Ioctl.GET_XCRS, address)

    def _get_kept(self, ioctl: Ioctl, address: int) -> None:
        size = int(ioctl) >> 16 & 0x3FFF
        copy_out(address, self._kept.get(ioctl, bytes(size)))

    def _set_kept(self, ioctl: Ioctl, address: int) -> None:
        self._kept[ioctl] = copy_in(address, int(ioctl) >> 16 & 0x3FFF)

    # CPUID and MSRs.

    @answers(Ioctl.SET_CPUID2)
    def set_cpuid(self, address: int) -> None:
        """The guest is told this from now on."""
        count = int.from_bytes(copy_in(address, 4), "little")
        if count > _MAX_CPUID:
            raise Refused(E2BIG, f"{count} leaves")
        data = copy_in(address + 8, count * CpuidEntry2.SIZE)
        self.cpuid.set(CpuidEntry2.from_bytes(data, at) for at in range(0, len(data), CpuidEntry2.SIZE))
        self._engine.hooks.forget_cpuid()

    @answers(Ioctl.GET_CPUID2)
    def get_cpuid(self, address: int) -> None:
        """The table; E2BIG if there is no room."""
        copy_out_cpuid(address, self.cpuid.entries)

    @answers(Ioctl.GET_MSRS)
    def get_msrs(self, address: int) -> int:
        """Those that are known, up to the first that is not; returns how many."""
        return answer_msrs(address, self._read_msr)

    @answers(Ioctl.SET_MSRS)
    def set_msrs(self, address: int) -> int:
        """Likewise."""
        return answer_msrs(address, self._write_msr)

    def _read_msr(self, entry: MsrEntry) -> bool:
        index, kind = entry.index, self._engine.msrs.kind(entry.index)
        if kind == ENGINE and self._is_open:
            entry.data = self._engine.uc.msr_read(index)
        elif kind != UNKNOWN:
            entry.data = self._engine.msrs.read(index)
        elif index in SETTABLE_MSRS:
            entry.data = self._msrs.get(index, 0)
        else:
            return False
        return True

    def _write_msr(self, entry: MsrEntry) -> bool:
        index, kind = entry.index, self._engine.msrs.kind(entry.index)
        if kind == UNKNOWN and index not in SETTABLE_MSRS:
            return False
        if kind == UNKNOWN:
            self._msrs[index] = entry.data
        elif index not in (msr.TSC, msr.EFER) and not self.vm.is_running:
            self._engine.set_msr(index, entry.data)
        elif index not in (msr.TSC, msr.EFER) and self._is_open:
            current = MsrEntry(index)
            if self._read_msr(current) and current.data != entry.data:
                self._engine.set_msr(index, entry.data)
        return True

    # Interrupts and the rest.

    @answers(Ioctl.GET_LAPIC)
    def get_lapic(self, address: int) -> None:
        """The registers' page."""
        if self.vm.chips is None:
            raise Refused(EINVAL, "no irqchip")
        copy_out(address, self.vm.chips.save_lapic())

    @answers(Ioctl.SET_LAPIC)
    def set_lapic(self, address: int) -> None:
        """Likewise; what it says already is left alone, so that no timer starts anew."""
        if self.vm.chips is None:
            raise Refused(EINVAL, "no irqchip")
        page = copy_in(address, 1024)
        if page != self.vm.chips.save_lapic():
            self.vm.chips.load_lapic(page)

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

    @answers(Ioctl.GET_TSC_KHZ)
    def get_tsc_khz(self, _argument: int) -> int:
        """The host's."""
        return self.vm.tsc_khz()

    @answers(Ioctl.SET_TSC_KHZ)
    def set_tsc_khz(self, argument: int) -> None:
        """Only the host's own, for nothing scales it."""
        if argument and abs(argument - self.vm.tsc_khz()) * 1000 > self.vm.tsc_khz():
            raise Refused(EINVAL, "the time-stamp counter is not scaled")

    @answers(Ioctl.X86_SETUP_MCE)
    @answers(Ioctl.KVMCLOCK_CTRL)
    @answers(Ioctl.SET_VAPIC_ADDR)
    def take(self, _argument: int) -> None:
        """Nothing to do."""

    @answers(Ioctl.TPR_ACCESS_REPORTING)
    @answers(Ioctl.ENABLE_CAP)
    @answers(Ioctl.SMI)
    def refuse(self, _argument: int) -> None:
        """Not modelled."""
        raise Refused(EINVAL, "not modelled")

    @answers(Ioctl.SET_GUEST_DEBUG)
    def set_guest_debug(self, address: int) -> None:
        """To turn it off only."""
        if copy_in(address, 4) != bytes(4):
            raise Refused(EINVAL, "guest debugging is not modelled")

    @answers(Ioctl.HAS_DEVICE_ATTR)
    @answers(Ioctl.GET_DEVICE_ATTR)
    @answers(Ioctl.SET_DEVICE_ATTR)
    def no_attribute(self, _argument: int) -> None:
        """A vCPU has none here."""
        raise Refused(ENXIO, "no attribute")


SETTABLE_MSRS = frozenset(
    {
        *(0x48, 0xCD, 0x3B, 0x122, 0x17B, 0x6E0, 0xC0010131, 0xC001011F, 0xC0011029),
        *(0x11, 0x12, *range(0x4B564D00, 0x4B564D09)),  # of KVM's paravirtual clock and its like
        *range(0x400, 0x480),  # machine checks
    }
)
"""Kept for the monitor; the guest's accesses do not see them."""


def _essence(value: Sregs) -> tuple[Any, ...]:
    names = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
    segments = ((getattr(value, name).selector, getattr(value, name).base) for name in names)
    control = value.cr0, value.cr2, value.cr3, value.cr4, value.cr8, value.efer, value.apic_base
    tables = value.gdt.base, value.gdt.limit, value.idt.base, value.idt.limit
    return (*segments, value.cs.l, value.cs.db, value.ss.dpl, *control, *tables)
