"""The memory of a flash unit: slot, host mapping and array mode as one state (docs/design/protection.md)."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from casemate.address import Gpa, GuestRange, Hva
from casemate.errors import HostError, InternalError
from casemate.events import AccessPath, EventSink, ProtectionAction, ProtectionChange
from casemate.host.hypervisor import FlashProgram, Vm
from casemate.memory.backing import Backing, HostMapping
from casemate.memory.map import MemoryMap
from casemate.memory.protection import WriteProtection
from casemate.memory.region import RomDevice

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class FlashMode(StrEnum):
    """The three states, and all there is to know about slot and mapping in them."""

    ARRAY = "array"
    """The guest reads memory: slot present, protection armed."""
    COMMAND = "command"
    """Every access goes to the device: no slot, mapping writable. A unit begins here, to be filled."""
    LAUNCH = "launch"
    """As ARRAY, with the protection lifted for a measured launch update; the guest does not run."""


class FlashMemory:
    """Owner of the memory of flash ``unit``, and the only caller of mprotect.

    Nobody else changes ``romd`` or the mapping, so the guest never runs with the slot present and the
    protection off, and the VMM never writes into a protected mapping. ``coalesced`` allows that writes come late
    in command mode.
    """

    def __init__(
        self,
        unit: int,
        backing: Backing,
        protection: WriteProtection,
        vm: Vm,
        sink: EventSink,
        *,
        coalesced: bool = False,
    ) -> None:
        self.unit = unit
        self.protection = protection
        self.mode = FlashMode.COMMAND
        self.gpa: Gpa | None = None
        """Where the unit begins, once attached."""
        self.view = backing.writable.view.toreadonly()
        """The contents, to look at."""
        self._backing = backing
        self._vm = vm
        self._map: MemoryMap | None = None
        self._region: RomDevice | None = None
        self._sink = sink
        self._coalesced = coalesced
        self._watched: HostMapping | None = None
        self._held: Gpa | None = None
        changes = [ProtectionChange(what, unit, why) for what, why in _CHANGES]
        self._added, self._commanded, self._launching, self._launched = changes

    @property
    def size(self) -> int:
        """Bytes."""
        return self._backing.size

    @property
    def is_armed(self) -> bool:
        """Whether the guest reads memory that is protected against it."""
        return self.mode is FlashMode.ARRAY

    @property
    def store_path(self) -> AccessPath:
        """How a write that reaches the device now came to it."""
        if self._vm.capabilities.has_protected_state:
            return AccessPath.GHCB
        if self.mode is FlashMode.COMMAND:
            return AccessPath.NO_SLOT
        if self.protection is WriteProtection.READONLY_SLOT:
            return AccessPath.READONLY_SLOT
        return AccessPath.EMULATOR

    def attach(self, memory_map: MemoryMap, region: RomDevice, gpa: Gpa) -> None:
        """Place ``region`` at ``gpa`` in array mode, protected. Raises HostError if the host refuses."""
        if self._map is not None or region.backing is not self._backing:
            raise InternalError(f"flash unit {self.unit}: attached twice, or with another unit's region")
        region.romd = False
        region.slot_mapping = self._slot_mapping()
        region.slot_readonly = self.protection is WriteProtection.READONLY_SLOT
        region.unit = self.unit
        # A guest with protected state asks for its commands (GHCB); others would have to get past the mapping.
        trapped = self.protection is WriteProtection.READONLY_SLOT
        region.array_writes_are_commands = self._vm.capabilities.has_protected_state or trapped
        # Late writes may follow the command that ends command mode. Where they should then fault they must not be late.
        self._coalesced &= region.array_writes_are_commands
        memory_map.add(region, gpa)
        self._map, self._region, self.gpa = memory_map, region, gpa
        self.enter_array_mode()

    def take_held_page(self) -> Gpa | None:
        """The page of the write that userfaultfd held and refused, once; the next write is held again."""
        page, self._held = self._held, None
        if page is not None and self._watched is not None:
            self._mprotect(self._watched, mmap.PROT_READ | mmap.PROT_WRITE, "waiting for the next write")
        return page

    def allow_write(self, offset: int, data: bytes) -> None:
        """Make one write of the guest's, though the unit is protected. The file behind it stays as it is."""
        self._backing.map_again(readonly=False).view[offset : offset + len(data)] = data
        if self.gpa is not None:
            self._vm.memory_written(Gpa(self.gpa + offset), len(data))

    def leave_array_mode(self) -> None:
        """Make every access go to the device: the slot goes, then the mapping becomes writable.

        Only from then on may writes be coalesced: what the device would not hear at once must not leave the guest
        reading the array.
        """
        if self.mode is FlashMode.COMMAND:
            return
        self._expect(FlashMode.ARRAY, "command mode")
        self._set_romd(False)
        self._protect(False, self._commanded)
        self._coalesce(True)
        self.mode = FlashMode.COMMAND

    def enter_array_mode(self) -> None:
        """Show the guest memory: the mapping becomes read-only, then the slot returns."""
        if self.mode is FlashMode.ARRAY:
            return
        self._expect(FlashMode.COMMAND, "array mode")
        self._coalesce(False)
        self._protect(True, self._added)
        self._set_romd(True)
        self.mode = FlashMode.ARRAY

    @contextmanager
    def launch_window(self) -> Iterator[HostMapping]:
        """Lift the protection for one measured launch update of the writable mapping that is handed out.

        The slot stays; the protection returns even if the update fails.
        """
        self._expect(FlashMode.ARRAY, "a launch update")
        self._protect(False, self._launching)
        self.mode = FlashMode.LAUNCH
        try:
            yield self._backing.writable
        finally:
            self._protect(True, self._launched)
            self.mode = FlashMode.ARRAY

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Program ``data`` at ``offset``. Legal in command mode only, when the guest has no slot for it."""
        self._expect(FlashMode.COMMAND, "a write")
        if not 0 <= offset <= offset + len(data) <= self.size:
            raise InternalError(
                f"flash unit {self.unit}: write of {len(data)} bytes at {offset:#x} is outside"
            )
        self._backing.writable.view[offset : offset + len(data)] = data

    def answer_programs(self, take: Callable[[list[FlashProgram]], None]) -> None:
        """A program was made: the host may answer further ones by itself, and tell ``take`` of them later."""
        if self.gpa is not None:
            self._vm.answer_programs(GuestRange(self.gpa, self.size), take)

    def read(self, offset: int, size: int) -> bytes:
        """The ``size`` bytes at ``offset``; fewer at the end of the unit."""
        return bytes(self.view[offset : offset + size])

    def _slot_mapping(self) -> HostMapping | None:
        if self.protection is WriteProtection.READONLY_VIEW:
            return self._backing.map_again(readonly=True)
        if self.protection is WriteProtection.USERFAULT:
            self._watched = self._backing.map_again(readonly=False)
            self._vm.watch_writes(self._watched.hva, self._watched.size, self._hold)
            return self._watched
        return None

    def _hold(self, page: Hva) -> None:
        assert self._watched is not None
        assert self.gpa is not None
        self._mprotect(self._watched, mmap.PROT_READ, "a write was held")
        self._held = Gpa(self.gpa + page - self._watched.hva)

    def _expect(self, mode: FlashMode, what: str) -> None:
        if self.mode is not mode:
            raise InternalError(f"flash unit {self.unit}: {what} is not possible in {self.mode} mode")

    def _set_romd(self, romd: bool) -> None:
        if self._map is None or self._region is None:
            raise InternalError(f"flash unit {self.unit} is not attached")
        self._region.romd = romd
        self._map.commit()

    def _coalesce(self, enabled: bool) -> None:
        if self._coalesced and self.gpa is not None:
            self._vm.coalesce_mmio(GuestRange(self.gpa, self.size), enabled=enabled)

    def _protect(self, readonly: bool, change: ProtectionChange) -> None:
        if self.protection is not WriteProtection.READONLY_VMA:
            return
        prot = mmap.PROT_READ if readonly else mmap.PROT_READ | mmap.PROT_WRITE
        self._mprotect(self._backing.writable, prot, change.why)
        self._sink.report(change)

    def _mprotect(self, mapping: HostMapping, prot: int, why: str) -> None:
        if _libc.mprotect(mapping.hva, mapping.size, prot):
            hva = f"[{mapping.hva:#x}, {mapping.hva + mapping.size:#x})"
            raise HostError(
                "mprotect", ctypes.get_errno(), f"flash unit {self.unit}, host range {hva}, {why}"
            )
        self._vm.mapping_changed(mapping.hva, mapping.size)


_CHANGES = (
    (ProtectionAction.ARMED, "slot added"),
    (ProtectionAction.LIFTED, "command mode"),
    (ProtectionAction.LIFTED, "launch update"),
    (ProtectionAction.ARMED, "launch update done"),
)
