"""An SNP launch by ioctl: private memory, START, UPDATE, FINISH (Linux x86/amd-memory-encryption.rst).

No SNP hardware was at hand: the bytes that are handed over are proven against the kernel's headers, the answers of a
real secure processor are not (LIMITATIONS.md).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from casemate.abi.kvm.guest_memfd import CreateGuestMemfd, MemoryAttributes, UserspaceMemoryRegion2
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.sev import SevInit2
from casemate.abi.kvm.snp import SnpLaunchFinish, SnpLaunchStart, SnpLaunchUpdate
from casemate.abi.kvm.structs import MEM_GUEST_MEMFD, MEM_READONLY, MEMORY_ATTRIBUTE_PRIVATE, CpuidEntry2
from casemate.abi.sev.commands import GuestState, SevCommand
from casemate.abi.sev.snp_pages import CpuidPage
from casemate.address import PAGE_SIZE, Gpa, GuestRange, Hva
from casemate.errors import UnsupportedError
from casemate.host.kvm import ioctl
from casemate.host.kvm.sev import SevCommands
from casemate.host.kvm.sev_device import Ioctl as SevIoctl
from casemate.host.kvm.sev_device import SevDevice
from casemate.host.kvm.snp_cpuid import snp_table, without_refused
from casemate.host.secure_processor import SevSetup, VcpuReset
from casemate.host.slots import MemorySlot
from casemate.host.snp_processor import Certificates, SnpFinish, SnpUpdate

PlaceVcpus = Callable[[Sequence[VcpuReset]], None]


@dataclass(frozen=True, slots=True)
class SnpLauncher:
    """What makes a VM one for SNP guests; ``device`` is closed with it."""

    device: SevDevice
    setup: SevSetup
    seals_state = True

    def set_up(
        self, vm: int, place_vcpus: PlaceVcpus, cpuid: Callable[[], Sequence[CpuidEntry2]]
    ) -> tuple[None, KvmSnp]:
        """KVM_SEV_INIT2 on the VM behind ``vm``, which has no vCPU yet; ``cpuid`` is that of its vCPU, once it has."""
        return None, KvmSnp(vm, self.device.fd, self.setup, place_vcpus=place_vcpus, cpuid=cpuid)

    def close(self) -> None:
        """Give the device back."""
        self.device.close()


class KvmSnp:
    """Implements ``casemate.host.snp_processor.SnpProcessor`` for the VM behind ``vm``, and backs its slots.

    Making it sets the VM up. ``place_vcpus`` puts the vCPUs where they start, just before they are measured.
    """

    def __init__(
        self,
        vm: int,
        sev_fd: int,
        setup: SevSetup,
        *,
        place_vcpus: PlaceVcpus,
        cpuid: Callable[[], Sequence[CpuidEntry2]],
        call: SevIoctl = ioctl.call,
    ) -> None:
        self.state = GuestState.UNINIT
        self._vm = vm
        self._call = call
        self._place_vcpus = place_vcpus
        self._cpuid = cpuid
        self._memory: dict[int, int] = {}
        self._command = SevCommands(vm, sev_fd, call, snp=True)
        self._command(SevCommand.INIT2, SevInit2(vmsa_features=setup.vmsa_features))

    def set_slot(self, slot: MemorySlot, size: int) -> None:
        """Shared half in host memory, private half in a guest_memfd of its own; ``size`` 0 takes the slot away."""
        if size:
            self._memory[slot.number] = self._call(
                self._vm, Ioctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(size=size)
            )
        region = UserspaceMemoryRegion2(
            slot=slot.number,
            flags=MEM_GUEST_MEMFD | (MEM_READONLY if slot.readonly else 0),
            guest_phys_addr=slot.range.start,
            memory_size=size,
            userspace_addr=slot.hva,
            guest_memfd=self._memory[slot.number],
        )
        self._call(self._vm, Ioctl.SET_USER_MEMORY_REGION2, region)
        if not size:
            os.close(self._memory.pop(slot.number))

    def cpuid_table(self) -> CpuidPage:
        """The vCPU's CPUID."""
        return snp_table(self._cpuid())

    def cpuid_of_vcpu(self, entries: Sequence[CpuidEntry2]) -> list[CpuidEntry2]:
        """Copies for a vCPU of the guest: without what its firmware refuses."""
        return without_refused(entries)

    def set_private(self, memory: GuestRange) -> None:
        """KVM_MEMORY_ATTRIBUTE_PRIVATE."""
        attributes = MemoryAttributes(
            address=memory.start, size=memory.size, attributes=MEMORY_ATTRIBUTE_PRIVATE
        )
        self._call(self._vm, Ioctl.SET_MEMORY_ATTRIBUTES, attributes)

    def launch_start(self, policy: int, gosvw: bytes) -> None:
        """KVM_SEV_SNP_LAUNCH_START."""
        start = SnpLaunchStart(policy=policy)
        start.gosvw[:] = gosvw
        self._command(SevCommand.SNP_LAUNCH_START, start)
        self.state = GuestState.LAUNCH_UPDATE

    def launch_update(self, update: SnpUpdate) -> None:
        """KVM_SEV_SNP_LAUNCH_UPDATE, once; ``update`` becomes what the kernel leaves of it, also on failure."""
        struct = SnpLaunchUpdate(
            gfn_start=update.gpa // PAGE_SIZE, uaddr=update.hva, len=update.size, type=update.page_type
        )
        try:
            self._command(SevCommand.SNP_LAUNCH_UPDATE, struct)
        finally:
            update.gpa, update.hva = Gpa(struct.gfn_start * PAGE_SIZE), Hva(struct.uaddr)
            update.size = struct.len

    def launch_finish(self, finish: SnpFinish, vcpus: Sequence[VcpuReset]) -> None:
        """KVM_SEV_SNP_LAUNCH_FINISH; KVM launches the save areas of its vCPUs by itself."""
        self._place_vcpus(vcpus)
        block, auth = (
            ctypes.create_string_buffer(data, len(data)) for data in (finish.id_block, finish.id_auth)
        )
        struct = SnpLaunchFinish(
            id_block_en=bool(finish.id_block),
            auth_key_en=finish.has_author_key,
            vcek_disabled=finish.vcek_disabled,
        )
        if finish.id_block:
            struct.id_block_uaddr, struct.id_auth_uaddr = ctypes.addressof(block), ctypes.addressof(auth)
        struct.host_data[:] = finish.host_data
        self._command(SevCommand.SNP_LAUNCH_FINISH, struct)
        self.state = GuestState.RUNNING

    def guest_report(self, report_data: bytes) -> None:
        """Only the running guest can ask."""

    def certificates(self) -> Certificates:
        """Raises UnsupportedError: the kernel has none."""
        raise UnsupportedError(
            "KVM has no certificates of its signer", "ask the host's administrator for them"
        )

    def close(self) -> None:
        """Give the private memory back."""
        for memory in self._memory.values():
            os.close(memory)
        self._memory.clear()
