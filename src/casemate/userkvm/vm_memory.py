"""The memory of a VM: slots, files of private memory, attributes, logs of what was written to (Linux api.rst).

Whatever changes what the guest runs on is done while no vCPU executes, in whichever thread it is.
"""

from __future__ import annotations

import itertools
import threading
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EEXIST, EINVAL, ENOENT, ENOMEM, ENOTTY
from typing import Protocol

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kvm.capabilities import Capability
from casemate.abi.kvm.guest_memfd import CreateGuestMemfd, MemoryAttributes, UserspaceMemoryRegion2
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import (
    MEM_GUEST_MEMFD,
    MEM_LOG_DIRTY_PAGES,
    MEM_READONLY,
    MEMORY_ATTRIBUTE_PRIVATE,
    DirtyLog,
    UserspaceMemoryRegion,
)
from casemate.abi.kvm.vm_types import VmType
from casemate.address import PAGE_SIZE, Gpa, GuestRange, Hva
from casemate.host.model.cpu.cpuid import C_BIT
from casemate.host.model.vm import ModelVm
from casemate.host.slots import MemorySlot
from casemate.userkvm.capabilities import SLOTS
from casemate.userkvm.dirty_log import SlotLog
from casemate.userkvm.guest_memfd import GuestMemfd, PrivateRanges, bind_memfd, pieces_of
from casemate.userkvm.kernel import Kernel
from casemate.userkvm.library import Inside, load
from casemate.userkvm.shared_memory import share
from casemate.userkvm.table import Descriptor, Refused, answers, copy_out

ADDRESS_SPACE = 1 << C_BIT
_PIECES = 1 << 32
"""First number in the model of a part of a slot; slots of the monitor are below."""


class MemoryUser(Protocol):
    """A vCPU, as far as memory concerns it (``casemate.userkvm.vcpu.Vcpu``)."""

    address: int
    is_closed: bool

    def slots_changed(self) -> None:
        """Watch the code in the slots that are there now."""


class VmMemory(Descriptor):
    """What a VM of ``vm_type`` has of memory. Subclasses keep ``vcpus``, and make ``model``."""

    def __init__(self, kernel: Kernel, vm_type: VmType) -> None:
        self.kernel = kernel
        self.vm_type = vm_type
        self.kind = GuestKind.PLAIN
        self.inside = Inside()
        self.model: ModelVm | None = None
        self.slots: dict[int, MemorySlot] = {}
        self.private = PrivateRanges()
        self.memfds: dict[int, GuestMemfd] = {}
        """Files of private memory, by number."""
        self._files: dict[int, GuestMemfd] = {}
        """The file that a slot is bound to."""
        self._mapped: dict[int, dict[tuple[int, int, int], int]] = {}
        """What the model has of each slot of private memory: start, end and address, and the model's number of it."""
        self._piece_numbers = itertools.count(_PIECES)
        self.conversions: Counter[str] = Counter()
        """Pages of a running SNP guest that the monitor made private or shared."""
        self.protections: list[str] = []
        """What happened to the monitor's mappings behind slots."""
        self._logs: dict[int, SlotLog] = {}
        """Of slots whose writes are logged."""
        self._changing = threading.RLock()

    @property
    @abstractmethod
    def memory_users(self) -> Mapping[int, MemoryUser]:
        """The vCPUs."""

    def back(self, model: ModelVm, slot: MemorySlot) -> None:
        """Give the model a slot."""
        if self.kind in (GuestKind.SEV, GuestKind.SEV_ES):
            share(slot.hva, slot.range.size)  # the guest sees it at a second address, with the C-bit
        if self.vm_type is VmType.SW_PROTECTED:
            self._back_pieces(model, slot)
        else:
            model.add_slot(slot)

    def _back_pieces(self, model: ModelVm, slot: MemorySlot) -> None:
        """Private pages are in the slot's file, the others in the monitor's memory."""
        before = self._mapped.get(slot.number, {})
        wanted = list(pieces_of(slot, self.private, self._files.get(slot.number)))
        for piece in before.keys() - wanted:
            model.delete_slot(before[piece])
        after = {piece: before[piece] for piece in wanted if piece in before}
        for piece in wanted:
            if piece not in after:
                start, end, hva = piece
                after[piece] = next(self._piece_numbers)
                where = GuestRange(Gpa(start), end - start)
                model.add_slot(MemorySlot(after[piece], where, Hva(hva), slot.readonly))
        self._mapped[slot.number] = after

    def slots_over(self, hva: int, size: int) -> list[MemorySlot]:
        """The slots that show some of this host memory."""
        return [
            slot for slot in self.slots.values() if slot.hva < hva + size and hva < slot.hva + slot.range.size
        ]

    def mapping_changed(self, hva: int, size: int) -> None:
        """The monitor changed the protection of host memory."""
        hit = self.slots_over(hva, size)
        if not hit:
            return
        if self.model is not None:
            with self.guest_stopped():
                self.model.mapping_changed(Hva(hva), size)
        for slot in hit:
            writable = self.kernel.is_writable(slot)
            self.protections.append(
                f"slot {slot.number} at {slot.range}: mapping {'lifted' if writable else 'armed (read-only)'}"
            )

    @contextmanager
    def guest_stopped(self) -> Iterator[None]:
        """No vCPU executes meanwhile, whichever thread is in KVM_RUN."""
        with self._changing:
            library, vcpus = load(), list(self.memory_users.values())
            for vcpu in vcpus:
                library.kvm_hold(vcpu.address)
            try:
                yield
            finally:
                for vcpu in vcpus:
                    library.kvm_release(vcpu.address)

    @answers(Ioctl.SET_USER_MEMORY_REGION, UserspaceMemoryRegion)
    def set_region(self, value: UserspaceMemoryRegion) -> None:
        """Add, delete or change a slot; the rules are the kernel's."""
        with self.guest_stopped():
            self._set_region(value)

    def _set_region(self, value: UserspaceMemoryRegion) -> None:
        number = value.slot
        known = MEM_LOG_DIRTY_PAGES | MEM_READONLY
        before = self.slots.get(number)
        if value.flags & ~known or number >= SLOTS or number >> 16:
            raise Refused(EINVAL, "flags or number")
        if not value.memory_size:
            if before is None:
                raise Refused(EINVAL, f"no slot {number}")
            self._delete(number)
            return
        slot = self._slot(value)
        if before == slot:
            self._log(slot, wanted=bool(value.flags & MEM_LOG_DIRTY_PAGES))
            return
        if before is not None and _fixed(before) != _fixed(slot):
            raise Refused(EINVAL, "a live slot's memory, size and read-only flag do not change")
        others = [other for key, other in self.slots.items() if key != number]
        if any(other.range.intersection(slot.range) for other in others):
            raise Refused(EEXIST, f"slot {number} overlaps another")
        if before is not None:
            self._delete(number)
        if self.model is not None:
            self.back(self.model, slot)
        self.slots[number] = slot
        self._tell_vcpus()
        self._log(slot, wanted=bool(value.flags & MEM_LOG_DIRTY_PAGES))

    def _log(self, slot: MemorySlot, *, wanted: bool) -> None:
        if wanted and slot.number not in self._logs:
            watched = self.kernel.watches_code and not self.kind.is_confidential
            self._logs[slot.number] = SlotLog(slot, is_watched=watched)
        elif not wanted and slot.number in self._logs:
            self._logs.pop(slot.number).close()

    @answers(Ioctl.SET_USER_MEMORY_REGION2, UserspaceMemoryRegion2)
    def set_region2(self, value: UserspaceMemoryRegion2) -> None:
        """The same, and private pages may be in a file."""
        if self.kernel.capabilities.answer(Capability.USER_MEMORY2) == 0:
            raise Refused(ENOTTY, "this kernel has no such ioctl")
        has_file = bool(value.flags & MEM_GUEST_MEMFD)
        region = UserspaceMemoryRegion(
            value.slot,
            value.flags & ~MEM_GUEST_MEMFD,
            value.guest_phys_addr,
            value.memory_size,
            value.userspace_addr,
        )
        with self.guest_stopped():
            if has_file and value.memory_size:
                self._check_private(value)
                file = bind_memfd(self, value)
                self._files[value.slot] = file
                try:
                    self._set_region(region)
                except Refused:
                    del self._files[value.slot]
                    file.unbind(value.slot)
                    raise
            elif value.slot in self._files and value.memory_size:
                raise Refused(EINVAL, "a slot with private memory does not change")
            else:
                self._set_region(region)

    def _check_private(self, value: UserspaceMemoryRegion2) -> None:
        if not self.kernel.capabilities.answer(Capability.GUEST_MEMFD, self.vm_type):
            raise Refused(EINVAL, "this VM has no private memory")
        if value.flags & (MEM_READONLY | MEM_LOG_DIRTY_PAGES) or value.slot in self.slots:
            raise Refused(EINVAL, "private memory is not read-only, is not logged, and does not change")

    @property
    def is_referenced(self) -> bool:
        """A vCPU or a file of private memory still has a descriptor."""
        files = (file.is_closed for file in self.memfds.values())
        return not all(vcpu.is_closed for vcpu in self.memory_users.values()) or not all(files)

    def _slot(self, value: UserspaceMemoryRegion) -> MemorySlot:
        end = value.guest_phys_addr + value.memory_size
        unaligned = (value.guest_phys_addr | value.memory_size | value.userspace_addr) % PAGE_SIZE
        if unaligned or end > ADDRESS_SPACE or value.userspace_addr + value.memory_size > 1 << 47:
            raise Refused(EINVAL, "misaligned, or out of reach")
        readonly = bool(value.flags & MEM_READONLY)
        if readonly and not self.kernel.era.takes_readonly_slot(self.vm_type):
            raise Refused(
                EINVAL, f"{self.kernel.era.name} has no read-only slots in {self.vm_type.kernel_name}"
            )
        where = GuestRange(Gpa(value.guest_phys_addr), value.memory_size)
        return MemorySlot(value.slot, where, Hva(value.userspace_addr), readonly)

    def _delete(self, number: int) -> None:
        del self.slots[number]
        if number in self._logs:
            self._logs.pop(number).close()
        file = self._files.pop(number, None)
        if file is not None:
            file.unbind(number)
        if self.model is not None:
            is_cut = self.vm_type is VmType.SW_PROTECTED
            for piece in self._mapped.pop(number, {}).values() if is_cut else (number,):
                self.model.delete_slot(piece)
        self._tell_vcpus()

    def _tell_vcpus(self) -> None:
        for vcpu in self.memory_users.values():
            vcpu.slots_changed()

    @answers(Ioctl.GET_DIRTY_LOG, DirtyLog)
    def get_dirty_log(self, value: DirtyLog) -> None:
        """What was written to since the last time."""
        log = self._logs.get(value.slot)
        if log is None:
            raise Refused(ENOENT, f"slot {value.slot} has no log")
        copy_out(value.dirty_bitmap, log.take())

    @answers(Ioctl.SET_MEMORY_ATTRIBUTES, MemoryAttributes)
    def set_attributes(self, value: MemoryAttributes) -> None:
        """Private or shared."""
        if not self.kernel.capabilities.answer(Capability.MEMORY_ATTRIBUTES, self.vm_type):
            raise Refused(ENOTTY, "this VM has no memory attributes")
        if value.flags or value.attributes & ~MEMORY_ATTRIBUTE_PRIVATE or not value.size:
            raise Refused(EINVAL, "flags, attributes or size")
        if (value.address | value.size) % PAGE_SIZE or value.address + value.size > ADDRESS_SPACE:
            raise Refused(EINVAL, "misaligned, or out of reach")
        memory = GuestRange(Gpa(value.address), value.size)
        with self.guest_stopped():
            self.private.set(memory.start, memory.end, private=bool(value.attributes))
            if self.vm_type is VmType.SW_PROTECTED:
                self._attributes_changed(memory)
            elif self.model is not None and self.model.snp_processor is not None:
                self._snp_attributes_changed(self.model, memory, private=bool(value.attributes))

    def _snp_attributes_changed(self, model: ModelVm, memory: GuestRange, *, private: bool) -> None:
        assert model.snp_processor is not None
        assert model.page_states is not None
        if model.page_states.has_begun:
            pages = memory.size // PAGE_SIZE
            model.page_states.change(memory.start // PAGE_SIZE, pages, private=private)
            self.conversions["to private" if private else "to shared"] += pages
        elif private:
            model.snp_processor.set_private(memory)

    def _attributes_changed(self, memory: GuestRange) -> None:
        # Of what is private and has no file the guest gets no answer, and the monitor an exit.
        self.inside.add_mmio(memory.start, memory.size)
        for slot in self.slots.values() if self.model is not None else ():
            if slot.range.intersection(memory):
                assert self.model is not None
                self._back_pieces(self.model, slot)
                self._tell_vcpus()

    def host_address(self, gpa: int, size: int) -> int | None:
        """Where memory is that the guest sees at an address now; None without a slot, or private and in no file."""
        for slot in self.slots.values():
            for start, end, hva in pieces_of(slot, self.private, self._files.get(slot.number)):
                if start <= gpa and gpa + size <= end:
                    return hva + gpa - start
        return None

    def private_memory_at(self, gpa: Gpa) -> int:
        """Bytes from ``gpa`` to the end of its slot, if that is bound to a file of private memory; else 0."""
        found = next((slot for slot in self.slots.values() if slot.range.contains(gpa)), None)
        return 0 if found is None or found.number not in self._files else found.range.end - gpa

    @answers(Ioctl.CREATE_GUEST_MEMFD, CreateGuestMemfd)
    def create_guest_memfd(self, value: CreateGuestMemfd) -> int:
        """A file of private memory; an SNP guest's is the model's own, whatever is in the file."""
        if not self.kernel.capabilities.answer(Capability.GUEST_MEMFD):
            raise Refused(ENOTTY, "this kernel has no such ioctl")
        if value.flags or not value.size or value.size % PAGE_SIZE or value.size >> 63:
            raise Refused(EINVAL, "flags or size")
        try:
            file = GuestMemfd(self.kernel.next_number(), value.size)
        except (OSError, OverflowError, ValueError) as error:
            raise Refused(getattr(error, "errno", None) or ENOMEM, "no such file can be made here") from None
        self.memfds[file.number] = file
        return file.fd


def _fixed(slot: MemorySlot) -> tuple[int, int, bool]:
    return slot.hva, slot.range.size, slot.readonly
