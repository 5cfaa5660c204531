"""An SNP launch by ioctl: private memory, START, UPDATE, FINISH (Linux x86/amd-memory-encryption.rst).

No SNP hardware was at hand: the bytes that are handed over are proven against the kernel's headers, the answers of a
real secure processor are not (LIMITATIONS.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING

from casemate.abi.kvm.guest_memfd import CreateGuestMemfd, MemoryAttributes, UserspaceMemoryRegion2
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.sev import SevCmd, SevInit2
from casemate.abi.kvm.snp import SnpLaunchFinish, SnpLaunchStart, SnpLaunchUpdate
from casemate.abi.kvm.structs import MEM_GUEST_MEMFD, MEMORY_ATTRIBUTE_PRIVATE
from casemate.abi.layout import Struct
from casemate.abi.sev.commands import SevCommand
from casemate.abi.sev.status import NO_FIRMWARE_CALL, refused
from casemate.address import PAGE_SIZE, Gpa, GuestRange, Hva
from casemate.errors import HostError

if TYPE_CHECKING:
    from casemate.host.slots import MemorySlot
    from casemate.host.snp_processor import SnpFinish, SnpUpdate

CallVm = Callable[[Ioctl, Struct], int]
"""An ioctl on the VM with a struct that the kernel may change; raises HostError."""


class KvmSnp:
    """The launch commands of one VM of type KVM_X86_SNP_VM; ``sev_fd`` is /dev/sev."""

    def __init__(self, call: CallVm, sev_fd: int) -> None:
        self._call = call
        self._sev_fd = sev_fd

    def initialize(self, vmsa_features: int) -> None:
        """KVM_SEV_INIT2, before any vCPU."""
        self._command(SevCommand.INIT2, SevInit2(vmsa_features=vmsa_features))

    def create_memory(self, size: int) -> int:
        """A guest_memfd for ``size`` bytes; returns its descriptor."""
        return self._call(Ioctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(size=size))

    def add_slot(self, slot: MemorySlot, guest_memfd: int, offset: int) -> None:
        """Shared half in host memory, private half at ``offset`` of ``guest_memfd``; never read-only."""
        region = UserspaceMemoryRegion2(
            slot=slot.number,
            flags=MEM_GUEST_MEMFD,
            guest_phys_addr=slot.range.start,
            memory_size=slot.range.size,
            userspace_addr=slot.hva,
            guest_memfd_offset=offset,
            guest_memfd=guest_memfd,
        )
        self._call(Ioctl.SET_USER_MEMORY_REGION2, region)

    def set_private(self, memory: GuestRange) -> None:
        """KVM_MEMORY_ATTRIBUTE_PRIVATE."""
        attributes = MemoryAttributes(
            address=memory.start, size=memory.size, attributes=MEMORY_ATTRIBUTE_PRIVATE
        )
        self._call(Ioctl.SET_MEMORY_ATTRIBUTES, attributes)

    def launch_start(self, policy: int, gosvw: bytes) -> None:
        """KVM_SEV_SNP_LAUNCH_START."""
        start = SnpLaunchStart(policy=policy)
        start.gosvw[:] = gosvw
        self._command(SevCommand.SNP_LAUNCH_START, start)

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

    def launch_finish(self, finish: SnpFinish) -> None:
        """KVM_SEV_SNP_LAUNCH_FINISH; KVM launches the save areas of its vCPUs by itself."""
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

    def _command(self, command: SevCommand, argument: Struct) -> None:
        envelope = SevCmd(id=command, data=ctypes.addressof(argument), sev_fd=self._sev_fd)
        try:
            self._call(Ioctl.MEMORY_ENCRYPT_OP, envelope)
        except HostError as error:
            if envelope.error not in (0, NO_FIRMWARE_CALL):
                raise refused(command.kernel_name, envelope.error, snp=True) from error
            raise HostError(command.kernel_name, error.errno) from error
