"""A VM of the machine's own KVM: slots, interrupt controllers, vCPUs (Linux api.rst, VM ioctls)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from errno import EINVAL, ENOENT
from typing import TYPE_CHECKING

from casemate.abi.kvm.capabilities import Capability
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import (
    IRQCHIP_IOAPIC,
    IRQCHIP_PIC_MASTER,
    IRQCHIP_PIC_SLAVE,
    MEM_READONLY,
    PIT_SPEAKER_DUMMY,
    CoalescedMmioZone,
    CpuidEntry2,
    Irqchip,
    IrqLevel,
    PitConfig,
    UserspaceMemoryRegion,
)
from casemate.abi.kvm.vm_types import VmType
from casemate.address import PAGE_SIZE, Gpa, GuestRange, Hva
from casemate.errors import HostError, InternalError
from casemate.host.capabilities import VmCapabilities
from casemate.host.kvm.cpuid import cpuid_of_vcpu
from casemate.host.kvm.ioctl import call
from casemate.host.kvm.routing import pc_routing
from casemate.host.kvm.system import KvmSystem
from casemate.host.kvm.vcpu import KvmVcpu
from casemate.host.kvm.vcpu_state import read_block
from casemate.host.slots import MemorySlot

if TYPE_CHECKING:
    from casemate.host.hypervisor import FlashProgram, InterruptController, IoBus, VcpuFacts, VcpuRunner
    from casemate.host.kvm.sev import SevLauncher
    from casemate.host.kvm.snp import KvmSnp, SnpLauncher
    from casemate.host.kvm.userfault import WriteWatch
    from casemate.host.secure_processor import SecureProcessor, VcpuReset

IDENTITY_MAP = 0xFEFFC000
"""One page that KVM uses to run real mode on old Intel processors; three more behind it are the TSS."""

RESET_ADDRESS = 0xFFFFFFF0
"""Where a vCPU stands when it was made."""

_CHIPS = (IRQCHIP_PIC_MASTER, IRQCHIP_PIC_SLAVE, IRQCHIP_IOAPIC)
_PIT_STATE_SIZE = 112


class KvmVm:
    """One VM; see ``casemate.host.hypervisor.Vm`` for the protocol. It closes ``system`` and ``sev`` with itself.

    ``closes_aside`` is for a process that ends soon: in the kernel, closing a VM takes up to 15 ms of waiting (SRCU,
    for the PIT's notifiers), which a thread does while the process does the rest.
    """

    def __init__(
        self,
        system: KvmSystem,
        vm_type: VmType,
        sev: SevLauncher | SnpLauncher | None = None,
        *,
        closes_aside: bool = False,
    ) -> None:
        self._system = system
        self._closes_aside = closes_aside
        self._sev = sev
        self._fd = -1
        self._slots: dict[int, MemorySlot] = {}
        self._vcpus: list[KvmVcpu] = []
        self._watches: list[WriteWatch] = []
        self._polls: list[Callable[[], None]] = []
        self.secure_processor: SecureProcessor | None = None
        self.snp_processor: KvmSnp | None = None
        self._first_cpuid: list[CpuidEntry2] = []
        """Of the vCPU that starts the guest: the table that an SNP guest finds is about it."""
        self._ring = system.extension(Capability.COALESCED_MMIO) * PAGE_SIZE, threading.Lock()
        try:
            self._fd = system.create_vm(vm_type)
            call(self._fd, Ioctl.SET_IDENTITY_MAP_ADDR, bytearray(IDENTITY_MAP.to_bytes(8, "little")))
            call(self._fd, Ioctl.SET_TSS_ADDR, IDENTITY_MAP + PAGE_SIZE)
            call(self._fd, Ioctl.CREATE_IRQCHIP)
            call(self._fd, Ioctl.SET_GSI_ROUTING, bytearray(pc_routing()))
            call(self._fd, Ioctl.CREATE_PIT2, PitConfig(flags=PIT_SPEAKER_DUMMY))
            self._chips = self._read_chips()
            self.capabilities = VmCapabilities(
                readonly_memory=bool(call(self._fd, Ioctl.CHECK_EXTENSION, Capability.READONLY_MEM)),
                has_protected_state=sev is not None and sev.seals_state,
                in_kernel_irqchip=True,
                max_vcpus=system.extension(Capability.MAX_VCPUS)
                or system.extension(Capability.NR_VCPUS)
                or 1,
            )
            if sev is not None:
                self.secure_processor, self.snp_processor = sev.set_up(
                    self._fd, self._place_vcpus, lambda: self._first_cpuid
                )
        except BaseException:
            self.close()
            raise

    def add_slot(self, slot: MemorySlot) -> None:
        """Back a guest range with host memory."""
        if slot.number in self._slots:
            raise HostError(Ioctl.SET_USER_MEMORY_REGION.kernel_name, EINVAL, f"slot {slot.number} is live")
        self._set(slot, slot.range.size)
        self._slots[slot.number] = slot

    def delete_slot(self, number: int) -> None:
        """Remove a slot; its range becomes MMIO."""
        slot = self._slots.pop(number, None)
        if slot is None:
            raise HostError(Ioctl.SET_USER_MEMORY_REGION.kernel_name, ENOENT, f"there is no slot {number}")
        self._set(slot, 0)

    def mapping_changed(self, hva: Hva, size: int) -> None:
        """Nothing to do: the kernel's MMU notifier saw it."""

    def coalesce_mmio(self, where: GuestRange, *, enabled: bool) -> None:
        """By a coalesced zone."""
        request = Ioctl.REGISTER_COALESCED_MMIO if enabled else Ioctl.UNREGISTER_COALESCED_MMIO
        call(self._fd, request, CoalescedMmioZone(addr=where.start, size=where.size), f"zone {where}")

    def answer_programs(self, where: GuestRange, take: Callable[[list[FlashProgram]], None]) -> None:
        """Nothing to do: programs leave the kernel one by one, or are coalesced."""

    def deliver_coalesced(self) -> None:
        """By a vCPU that leaves the kernel; any will do, for they have one ring."""
        if self._vcpus and self._vcpus[0].has_late_stores:
            self._vcpus[0].wake()

    def watch_writes(self, hva: Hva, size: int, on_write: Callable[[Hva], None]) -> None:
        """By userfaultfd."""
        from casemate.host.kvm.userfault import WriteWatch

        self._watches.append(WriteWatch(hva, size, on_write))

    def memory_written(self, gpa: Gpa, size: int) -> None:
        """Nothing to do: the processor keeps its caches coherent."""

    def create_vcpu(
        self, bus: IoBus, interrupts: InterruptController | None, *, number: int = 0, count: int = 1
    ) -> KvmVcpu:
        """Add a vCPU; interrupts come from the kernel's own controllers, and so does what starts all but the first."""
        cpuid = cpuid_of_vcpu(self._system.supported_cpuid(), number, count)
        if self.snp_processor is not None:
            cpuid = self.snp_processor.cpuid_of_vcpu(cpuid)
        if not self._vcpus:
            self._first_cpuid = cpuid
        size = self._system.vcpu_mmap_size()
        fd = call(self._fd, Ioctl.CREATE_VCPU, number, f"vCPU {number}")
        try:
            vcpu = KvmVcpu(
                number,
                fd,
                size,
                cpuid,
                bus,
                self._slots,
                self._reset_chips,
                self._ring,
                self._polls,
                protected=self.capabilities.has_protected_state,
            )
        except BaseException:
            os.close(fd)
            raise
        self._vcpus.append(vcpu)
        return vcpu

    def vcpu_facts(self) -> list[VcpuFacts]:
        """The kernel counts for itself."""
        return []

    def runners(self) -> Sequence[VcpuRunner]:
        """Each vCPU has a thread of its own."""
        return self._vcpus

    def irq_line(self, gsi: int) -> Callable[[bool], None]:
        """The wire to an input of the kernel's interrupt controllers."""

        def drive(level: bool) -> None:
            call(self._fd, Ioctl.IRQ_LINE, IrqLevel(irq=gsi, level=level))

        return drive

    def watch(self, poll: Callable[[], None]) -> None:
        """See ``KernelIrqchip``."""
        self._polls.append(poll)

    def guest_requests(self) -> dict[str, dict[str, int]]:
        """Nothing is known."""
        return {}

    def close(self) -> None:
        """Give everything back."""
        for vcpu in self._vcpus:
            vcpu.close()
        if self.snp_processor is not None:
            self.snp_processor.close()
        if self._fd >= 0:
            self._close_vm()
            self._fd = -1
        for watch in self._watches:
            watch.close()
        self._system.close()
        if self._sev is not None:
            self._sev.close()

    def _close_vm(self) -> None:
        if not self._closes_aside:
            os.close(self._fd)
            return
        try:
            threading.Thread(target=os.close, args=(self._fd,), name="casemate-close", daemon=True).start()
        except RuntimeError:  # no thread can be had
            os.close(self._fd)

    def _place_vcpus(self, vcpus: Sequence[VcpuReset]) -> None:
        if len(vcpus) != len(self._vcpus):
            raise InternalError(f"{len(vcpus)} vCPUs are planned, the VM has {len(self._vcpus)}")
        for vcpu, reset in zip(self._vcpus, vcpus, strict=True):
            if reset.address != RESET_ADDRESS:
                vcpu.place(reset.address)

    def _read_chips(self) -> list[tuple[Ioctl, bytes]]:
        chips = []
        for number in _CHIPS:
            chip = Irqchip(chip_id=number)
            call(self._fd, Ioctl.GET_IRQCHIP, chip)
            chips.append((Ioctl.SET_IRQCHIP, chip.to_bytes()))
        return [*chips, (Ioctl.SET_PIT2, read_block(self._fd, Ioctl.GET_PIT2, _PIT_STATE_SIZE))]

    def _reset_chips(self) -> None:
        for request, state in self._chips:
            call(self._fd, request, bytearray(state))

    def _set(self, slot: MemorySlot, size: int) -> None:
        if self.snp_processor is not None:
            self.snp_processor.set_slot(slot, size)
            return
        region = UserspaceMemoryRegion(
            slot=slot.number,
            flags=MEM_READONLY if slot.readonly else 0,
            guest_phys_addr=slot.range.start,
            memory_size=size,
            userspace_addr=slot.hva,
        )
        detail = f"slot {slot.number} at {slot.range}, flags {region.flags:#x}, size {size:#x}"
        call(self._fd, Ioctl.SET_USER_MEMORY_REGION, region, detail)
