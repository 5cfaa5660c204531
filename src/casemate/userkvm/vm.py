"""The descriptor of a VM: memory, interrupts, vCPUs, and what kind of guest it is (Linux api.rst, "vm ioctls").

KVM learns a VM's kind by KVM_SEV_INIT and its like, when slots may be there already; the model wants to know it first.
So the modelled VM is made when a vCPU or a launch needs it, and gets the slots that are there then.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from errno import EEXIST, EINVAL, ENOENT, ENOSPC, ENOTTY, ENXIO
from time import time_ns

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kvm.capabilities import Capability
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import (
    IRQ_ROUTING_IRQCHIP,
    IRQ_ROUTING_MSI,
    IRQCHIP_IOAPIC,
    IRQCHIP_PIC_SLAVE,
    IRQFD_DEASSIGN,
    IRQFD_RESAMPLE,
    ClockData,
    CoalescedMmioZone,
    EnableCap,
    EncRegion,
    IoapicStateStruct,
    Ioeventfd,
    IrqfdStruct,
    IrqLevel,
    IrqRoutingEntry,
    IrqRoutingMsi,
    Msi,
)
from casemate.abi.kvm.structs import (
    Irqchip as IrqchipStruct,
)
from casemate.abi.kvm.vm_types import VmType
from casemate.address import Gpa, GuestRange, Hva
from casemate.host.exits import (
    KvmInternalError,
    MemoryFault,
    NestedFaultLoop,
    SevTermination,
    Shutdown,
    VmExit,
)
from casemate.host.model.cpu.cpuid import C_BIT
from casemate.host.model.cpu.unicorn_api import host_ticks
from casemate.host.model.vm import MAX_VCPUS, ModelVm
from casemate.host.secure_processor import SevSetup
from casemate.userkvm.capabilities import (
    CLOCK_FLAGS,
    CLOCK_REALTIME,
    DISABLE_HLT,
    MAP_GPA_RANGE_EXITS,
    VCPU_IDS,
)
from casemate.userkvm.cpuid import VcpuCpuid
from casemate.userkvm.ioeventfd import Ioeventfds, Irqfds
from casemate.userkvm.irqchip import Irqchip, Message, Pin, Route, default_routes
from casemate.userkvm.kernel import Kernel
from casemate.userkvm.legacy_chips import LegacyChips
from casemate.userkvm.library import Kind, load
from casemate.userkvm.pv_clock import VmClock
from casemate.userkvm.split_irqchip import SplitIrqchip
from casemate.userkvm.stats import VM_STATS, make_file, open_stats
from casemate.userkvm.table import Refused, answers, copy_in, copy_out
from casemate.userkvm.vcpu import Vcpu
from casemate.userkvm.vm_memory import ADDRESS_SPACE, VmMemory

_REGION = "KVM_SET_USER_MEMORY_REGION"
_ROUTES = 1024
_MAX_IOAPIC_ROUTES = 64
_PIT_STATE, _PIC_VECTOR_AT = 112, 5


class Vm(VmMemory):
    """One VM of ``vm_type``, of the modelled ``kernel``."""

    unknown_errno = ENOTTY

    def __init__(self, kernel: Kernel, vm_type: VmType) -> None:
        super().__init__(kernel, vm_type)
        self.setup = SevSetup()
        self.cpuid = VcpuCpuid()
        self.chips: Irqchip | None = None
        self.ioeventfds = Ioeventfds(self.inside)
        self.legacy = LegacyChips()
        self.irqfds: Irqfds | None = None
        self.vcpus: dict[int, Vcpu] = {}
        self.clock = VmClock(kernel.tsc_khz())
        self._stats_fd: int | None = None
        self._vcpu_ids = 0
        self._zones: list[tuple[int, int, bool]] = []
        """Start and end of memory or ports, whether ports, whose writes are coalesced."""
        self.hypercall_exits = 0
        self.disabled_quirks = 0
        self.shows_platform_info = True
        """Hypercalls that the monitor answers, a bit each."""
        self.policy = 0
        self.digest: str | None = None
        """The launch digest in hex, once the launch measured or finished."""
        self.number = kernel.next_number()
        self.fd: int = load().kvm_descriptor(Kind.VM, self.number, b"casemate-vm")

    @property
    def memory_users(self) -> Mapping[int, Vcpu]:
        """The vCPUs."""
        return self.vcpus

    # The modelled VM.

    @property
    def is_protected(self) -> bool:
        """Registers and memory are the guest's alone."""
        return self.kind in (GuestKind.SEV_ES, GuestKind.SNP)

    @property
    def is_running(self) -> bool:
        """The guest may have executed something."""
        return any(vcpu.record.started for vcpu in self.vcpus.values())

    @property
    def address_mask(self) -> int:
        """What of an address the bus sees."""
        all_bits = (1 << 64) - 1
        return all_bits & ~(1 << C_BIT) if self.kind.is_confidential else all_bits

    def realize(self) -> ModelVm:
        """The modelled VM, made if it was not yet. Raises HostError."""
        with self._changing:  # a thread makes its vCPU while another one launches, or adds slots
            if self.model is None:
                self.model = self._make_model()
            return self.model

    def _make_model(self) -> ModelVm:
        self.cpuid.is_confidential = self.kind.is_confidential
        model = self.kernel.hypervisor(self.kind).create_vm(self.kind, self.setup, cpuid=self.cpuid)
        try:
            for slot in self.slots.values():
                self.back(model, slot)
        except BaseException:
            self._mapped.clear()
            model.close()
            raise
        if model.page_states is not None:
            model.page_states.host = self
        if model.snp_processor is not None:
            for start, end, is_private in self.private.runs(0, ADDRESS_SPACE):
                if is_private:
                    model.snp_processor.set_private(GuestRange(Gpa(start), end - start))
        return model

    @property
    def _executing(self) -> Vcpu:
        return next(vcpu for vcpu in self.vcpus.values() if vcpu.record.has_turn)

    def change_pages(self, page: int, count: int, *, private: bool) -> bool:
        """An SNP guest asks by an exit of the vCPU that asks (``casemate.host.model.snp.page_states.PageHost``)."""
        return self._executing.change_pages(page, count, private=private)

    def pages_touched(self, page: int, *, private: bool) -> None:
        """Likewise."""
        self._executing.pages_touched(page, private=private)

    def close(self) -> None:
        """Nobody has a descriptor any more."""
        for log in self._logs.values():
            log.close()
        if self.irqfds is not None:
            self.irqfds.close()
        self.ioeventfds.close()
        if self._stats_fd is not None:
            os.close(self._stats_fd)
        for vcpu in self.vcpus.values():
            vcpu.leave_engine()
        if self.model is not None:
            self.model.close()
        for vcpu in self.vcpus.values():
            vcpu.close()

    def say(self, text: str) -> None:
        """Tell the user."""
        self.kernel.say(text)

    def describe(self, vm_exit: VmExit) -> str:
        """An exit that is no access, in words."""
        match vm_exit:
            case Shutdown():
                return "the guest met a triple fault (KVM_EXIT_SHUTDOWN)"
            case MemoryFault(gpa=None):
                return (
                    "KVM_RUN fails with EFAULT: a protected guest wrote to memory whose mapping is read-only"
                )
            case MemoryFault():
                return f"KVM_RUN fails with EFAULT: {_evidence(vm_exit)}, whose mapping is read-only"
            case NestedFaultLoop():
                return "the guest hangs: a protected guest wrote to a read-only slot, and faults for ever"
            case SevTermination():
                return f"the guest asked for its end: {vm_exit.detail}"
            case KvmInternalError():
                return f"KVM_EXIT_INTERNAL_ERROR: {vm_exit.detail}"
        return str(vm_exit)

    # Capabilities and vCPUs.

    @answers(Ioctl.CHECK_EXTENSION)
    def check_extension(self, number: int) -> int:
        """By type and era."""
        return self.kernel.capabilities.answer(number, self.vm_type)

    @answers(Ioctl.CREATE_VCPU)
    def create_vcpu(self, number: int) -> int:
        """In the order of their numbers."""
        if number >= (self._vcpu_ids or VCPU_IDS):
            raise Refused(EINVAL, f"vCPU {number} is beyond the highest number")
        if number in self.vcpus:
            raise Refused(EEXIST, f"there is a vCPU {number}")
        if len(self.vcpus) == MAX_VCPUS:
            raise Refused(EINVAL, f"a VM has {MAX_VCPUS} vCPUs at most")
        if self.vcpus and self.chips is not None:
            self.chips.add_processor(number)
        vcpu = Vcpu(self, number)
        self.vcpus[number] = vcpu
        return vcpu.fd

    # Interrupts.

    @answers(Ioctl.CREATE_IRQCHIP)
    def create_irqchip(self, _argument: int) -> None:
        """Before the vCPU."""
        if self.chips is not None:
            raise Refused(EEXIST, "there is one")
        if self.vcpus:
            raise Refused(EINVAL, "there are vCPUs")
        self.chips = Irqchip(self.kernel.clock)
        self.chips.place(self.inside, has_pit=False)
        if not self.kernel.sees_all_calls:
            self.chips.show_lines(self.inside)
            load().kvm_watch_lines(self.number, ctypes.addressof(self.inside))
        self.irqfds = Irqfds(self.chips.set_level)

    def _irqchip(self, errno: int = ENXIO) -> Irqchip:
        if self.chips is None:
            raise Refused(errno, "no irqchip")
        return self.chips

    @answers(Ioctl.CREATE_PIT2)
    def create_pit(self, _address: int) -> None:
        """In the irqchip."""
        self._irqchip(ENOENT).place(self.inside, has_pit=True)

    @answers(Ioctl.IRQ_LINE, IrqLevel)
    @answers(Ioctl.IRQ_LINE_STATUS, IrqLevel)
    def irq_line(self, value: IrqLevel) -> None:
        """Drive one."""
        self._irqchip().set_level(value.irq, bool(value.level))
        value.irq = 1  # what KVM_IRQ_LINE_STATUS answers: it was delivered

    @answers(Ioctl.SIGNAL_MSI, Msi)
    def signal_msi(self, value: Msi) -> int:
        """1 if it reached the vCPU."""
        return int(self._irqchip(EINVAL).deliver(Message(value.address_lo, value.data)))

    @answers(Ioctl.SET_GSI_ROUTING)
    def set_routing(self, address: int) -> None:
        """All routes at once."""
        chips = self._irqchip(EINVAL)
        count, flags = (int.from_bytes(copy_in(address + at, 4), "little") for at in (0, 4))
        if count > _ROUTES or flags:
            raise Refused(EINVAL, f"{count} routes")
        routes: dict[int, list[Route]] = {}
        data = copy_in(address + 8, count * IrqRoutingEntry.SIZE)
        for at in range(0, len(data), IrqRoutingEntry.SIZE):
            entry, msi = IrqRoutingEntry.from_bytes(data, at), IrqRoutingMsi.from_bytes(data, at)
            if entry.type == IRQ_ROUTING_IRQCHIP and entry.irqchip <= IRQCHIP_IOAPIC:
                routes.setdefault(entry.gsi, []).append(Pin(entry.irqchip, entry.pin))
            elif entry.type == IRQ_ROUTING_MSI:
                routes.setdefault(entry.gsi, []).append(Message(msi.address_lo, msi.data))
            else:
                raise Refused(EINVAL, f"a route of type {entry.type}")
        with chips.lock:
            chips.forget_lines()
            chips.routes = routes or ({} if isinstance(chips, SplitIrqchip) else default_routes())

    @answers(Ioctl.GET_IRQCHIP, IrqchipStruct)
    def get_irqchip(self, value: IrqchipStruct) -> None:
        """What a chip is programmed to."""
        chips = self._irqchip()
        if value.chip_id > IRQCHIP_IOAPIC:
            raise Refused(EINVAL, f"chip {value.chip_id}")
        if value.chip_id == IRQCHIP_IOAPIC:
            state = chips.ioapic_state().to_bytes()
        else:
            state = self.legacy.pic_state(value.chip_id, chips.read_port, chips.write_port)
        value.chip[:] = state.ljust(512, b"\0")

    @answers(Ioctl.SET_IRQCHIP)
    def set_irqchip(self, address: int) -> None:
        """Program a chip so. Monitors reset the 8259s and what belongs to them by it, too."""
        chips = self._irqchip()
        value = IrqchipStruct.from_bytes(copy_in(address, IrqchipStruct.SIZE))
        if value.chip_id == IRQCHIP_IOAPIC:
            chips.set_ioapic_state(IoapicStateStruct.from_bytes(bytes(value.chip)))
        elif value.chip_id > IRQCHIP_PIC_SLAVE:
            raise Refused(EINVAL, f"chip {value.chip_id}")
        elif not any(bytes(value.chip)[: _PIC_VECTOR_AT + 1]):
            chips.reset()
        else:
            chips.forget_lines()
            self.legacy.set_pic_state(value.chip_id, bytes(value.chip), chips.write_port, self._pulse)

    def _pulse(self, line: int) -> None:
        chips = self._irqchip()
        chips.set_level(line, True)
        chips.set_level(line, False)

    @answers(Ioctl.GET_PIT2)
    def get_pit(self, address: int) -> None:
        """What its counters are programmed to."""
        self._irqchip()
        copy_out(address, self.legacy.pit_state())

    @answers(Ioctl.SET_PIT2)
    def set_pit(self, address: int) -> None:
        """Program them so, where that is something else."""
        chips, state = self._irqchip(), copy_in(address, _PIT_STATE)
        if state != self.legacy.pit_state():
            self.legacy.set_pit_state(state, chips.write_port)

    @answers(Ioctl.REINJECT_CONTROL)
    def set_reinjection(self, address: int) -> None:
        """Whether ticks come later that the guest could not take in time."""
        self._irqchip().pit.reinjects = bool(copy_in(address, 1)[0])

    @answers(Ioctl.IRQFD, IrqfdStruct)
    def irqfd(self, value: IrqfdStruct) -> None:
        """An event descriptor that raises an interrupt."""
        self._irqchip(EINVAL)
        assert self.irqfds is not None
        if value.flags & ~(IRQFD_DEASSIGN | IRQFD_RESAMPLE):
            raise Refused(EINVAL, "flags")
        if value.flags & IRQFD_RESAMPLE:
            raise Refused(EINVAL, "KVM_CAP_IRQFD_RESAMPLE is not offered")
        if value.flags & IRQFD_DEASSIGN:
            self.irqfds.deassign(value.fd, value.gsi)
        else:
            self.irqfds.assign(value.fd, value.gsi)

    @answers(Ioctl.IOEVENTFD, Ioeventfd)
    def ioeventfd(self, value: Ioeventfd) -> None:
        """A store that signals an event descriptor."""
        self.ioeventfds.change(value)

    @answers(Ioctl.REGISTER_COALESCED_MMIO, CoalescedMmioZone)
    def register_coalesced(self, value: CoalescedMmioZone) -> None:
        """Writes there wait in the ring for the next exit."""
        if value.pio > 1:
            raise Refused(EINVAL, "pio is 0 or 1")
        zone = value.addr, value.addr + value.size, bool(value.pio)
        with self.guest_stopped():
            if not self.inside.set_zones([*self._zones, zone]):
                raise Refused(ENOSPC, "too many")
            self._zones.append(zone)

    @answers(Ioctl.UNREGISTER_COALESCED_MMIO, CoalescedMmioZone)
    def unregister_coalesced(self, value: CoalescedMmioZone) -> None:
        """No more; zones within this one are gone, and there need be none."""
        if value.pio > 1:
            raise Refused(EINVAL, "pio is 0 or 1")
        start, end = value.addr, value.addr + value.size
        with self.guest_stopped():
            kept = [
                zone
                for zone in self._zones
                if zone[2] != bool(value.pio) or not (start <= zone[0] and zone[1] <= end)
            ]
            self._zones = kept
            self.inside.set_zones(kept)

    # Time and the rest.

    def first_tsc_offset(self) -> int | None:
        """How far the first vCPU's time-stamp counter is ahead of the host's, if there is one."""
        first = next(iter(self.vcpus.values()), None)
        return None if first is None else first.msrs.tsc_offset

    def count_vcpus(self) -> int:
        """How many there are."""
        return len(self.vcpus)

    def tsc_khz(self) -> int:
        """Of the host's time-stamp counter."""
        return self.kernel.tsc_khz()

    @answers(Ioctl.GET_CLOCK, ClockData)
    def get_clock(self, value: ClockData) -> None:
        """Nanoseconds, and what other clocks said then."""
        value.host_tsc, value.realtime = host_ticks(), time_ns()
        value.clock, value.flags = self.clock.at(value.host_tsc), CLOCK_FLAGS

    @answers(Ioctl.SET_CLOCK, ClockData)
    def set_clock(self, value: ClockData) -> None:
        """From there on; with a time of day, as if it had gone on since."""
        if value.flags & ~CLOCK_FLAGS:
            raise Refused(EINVAL, f"flags {value.flags:#x}")
        since = time_ns() - value.realtime if value.flags & CLOCK_REALTIME else 0
        self.clock.set(value.clock + max(since, 0))
        for vcpu in self.vcpus.values():
            vcpu.show_time()

    @answers(Ioctl.GET_STATS_FD)
    def get_stats(self, _argument: int) -> int:
        """Of the VM itself."""
        if self._stats_fd is None:
            self._stats_fd = make_file()
        return open_stats(self._stats_fd, f"kvm-{os.getpid()}", VM_STATS)

    @answers(Ioctl.GET_TSC_KHZ)
    def get_tsc_khz(self, _argument: int) -> int:
        """The host's."""
        return self.tsc_khz()

    @answers(Ioctl.ENABLE_CAP, EnableCap)
    def enable_cap(self, value: EnableCap) -> None:
        """What VMMs turn on and the model has no use for is taken; the rest is refused."""
        if value.flags or not self.kernel.capabilities.answer(value.cap, self.vm_type):
            raise Refused(EINVAL, f"capability {value.cap}")
        if value.cap == Capability.EXIT_HYPERCALL:
            if value.args[0] & ~MAP_GPA_RANGE_EXITS:
                raise Refused(EINVAL, f"exits for hypercalls {value.args[0]:#x}")
            self.hypercall_exits = value.args[0]
        if value.cap == Capability.SPLIT_IRQCHIP:
            self._split_irqchip(value.args[0])
        if value.cap == Capability.X86_DISABLE_EXITS:
            self.cpuid.never_halts = bool(value.args[0] & DISABLE_HLT)
        if value.cap == Capability.DISABLE_QUIRKS2:
            self.disabled_quirks |= value.args[0]
        if value.cap == Capability.MSR_PLATFORM_INFO:
            self.shows_platform_info = bool(value.args[0])
        if value.cap == Capability.MAX_VCPU_ID:
            self._limit_vcpu_ids(value.args[0])

    def _split_irqchip(self, routes: int) -> None:
        if routes > _MAX_IOAPIC_ROUTES or self.vcpus:
            raise Refused(EINVAL, "too many routes, or there are vCPUs")
        if self.chips is not None:
            raise Refused(EEXIST, "there is one")
        chips = SplitIrqchip(self.kernel.clock)
        chips.place_lapic(self.inside)
        self.chips, self.irqfds = chips, Irqfds(chips.set_level)

    def _limit_vcpu_ids(self, count: int) -> None:
        if count > VCPU_IDS or self.vcpus or self._vcpu_ids not in (0, count):
            raise Refused(EINVAL, "too many, or set before")
        self._vcpu_ids = count

    @answers(Ioctl.SET_TSS_ADDR)
    @answers(Ioctl.SET_IDENTITY_MAP_ADDR)
    @answers(Ioctl.SET_NR_MMU_PAGES)
    @answers(Ioctl.SET_BOOT_CPU_ID)
    def take(self, _argument: int) -> None:
        """Needed by processors that are not modelled."""

    @answers(Ioctl.HAS_DEVICE_ATTR)
    @answers(Ioctl.GET_DEVICE_ATTR)
    @answers(Ioctl.SET_DEVICE_ATTR)
    def no_attribute(self, _argument: int) -> None:
        """A VM has none here."""
        raise Refused(ENXIO, "no attribute")

    # Confidential guests.

    @answers(Ioctl.MEMORY_ENCRYPT_OP)
    def memory_encrypt(self, address: int) -> int:
        """A launch command, or the question whether there are any."""
        from casemate.userkvm.sev import run_command  # loads cryptography, for SEV and SEV-ES

        if not self.kernel.has_sev:
            raise Refused(ENOTTY, "no secure processor")
        return run_command(self, address) if address else 0

    @answers(Ioctl.MEMORY_ENCRYPT_REG_REGION, EncRegion)
    def register_region(self, value: EncRegion) -> None:
        """Pinned, by the rules of the era."""
        if not self.kind.is_confidential:
            raise Refused(ENOTTY, "no guest of SEV")
        if self.kind is not GuestKind.SNP:
            processor = self.realize().secure_processor
            assert processor is not None
            processor.register_region(Hva(value.addr), value.size)

    @answers(Ioctl.MEMORY_ENCRYPT_UNREG_REGION, EncRegion)
    def unregister_region(self, value: EncRegion) -> None:
        """Not pinned any more."""
        if not self.kind.is_confidential:
            raise Refused(ENOTTY, "no guest of SEV")


def _evidence(fault: MemoryFault) -> str:
    return f"{fault.size} bytes at {fault.gpa:#x} by the instruction at {fault.rip:#x}"
